"""Clicks and boxes: what clients send, what the decoders make of it, and how a mask spreads through a volume."""
