"""The ``ssmsam`` command. Nothing else parses arguments."""

from ssmsam.cli.command import launcher, main

__all__ = ["launcher", "main"]
