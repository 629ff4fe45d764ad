"""Volumes that carry their geometry, how they are read, and how their intensities become network input."""
