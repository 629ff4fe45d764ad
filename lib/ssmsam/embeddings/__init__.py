"""From slices to embeddings: each slice is encoded once, in memory or on disk."""
