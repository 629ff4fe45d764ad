"""What to annotate next, slice by slice, and how much a model expects to be wrong."""
