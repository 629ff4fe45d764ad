"""Clicks and boxes: how prompts become masks, and how a mask spreads through a volume."""
