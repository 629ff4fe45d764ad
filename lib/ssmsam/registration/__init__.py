"""Laying one patient's volume over another's: where a place of the one is in the other. Nothing is learned."""
