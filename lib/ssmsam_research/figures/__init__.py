"""Pictures of recorded results."""
