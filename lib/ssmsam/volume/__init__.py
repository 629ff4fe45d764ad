"""Volumes that carry their geometry, how they are read and written, and how their intensities become network input."""
