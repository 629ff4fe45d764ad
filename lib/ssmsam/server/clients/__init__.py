"""What each kind of client sends and expects."""
