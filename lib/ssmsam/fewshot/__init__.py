"""Few labelled slices as prompts: target embeddings, the token-query decoder and its adaptation (Xie et al., 2024)."""
