"""``ssmsam train``: see ``ssmsam_research.cli.train``."""

from ssmsam.cli.research import passed_on

command = passed_on("train")
