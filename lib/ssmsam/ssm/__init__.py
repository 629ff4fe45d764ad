"""SSM-SAM (Zhang et al., WACV 2024): self-sampled prompts, mask attention, adaptors, meta-learned adaptation."""
