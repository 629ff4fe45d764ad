"""A few labelled slices as prompts: support, adaptation, proposals, task checkpoints.

After Xie et al. (WACV 2024) and Zhang et al. (WACV 2024).
"""
