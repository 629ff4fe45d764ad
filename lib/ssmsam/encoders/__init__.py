"""Image encoders, where their weights come from, and the store that keeps what they computed."""
