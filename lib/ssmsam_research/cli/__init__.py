"""The commands ssmsam benchmark and ssmsam train."""
