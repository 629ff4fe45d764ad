"""A few labelled slices as prompts: support, adaptation, proposals, task checkpoints (Xie et al., 2024; Zhang et al., 2024)."""
