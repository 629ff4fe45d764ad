"""``ssmsam benchmark``: see ``ssmsam_research.cli.benchmark``."""

from ssmsam.cli.research import passed_on

command = passed_on("benchmark")
