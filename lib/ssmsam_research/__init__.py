"""Protocols, baselines, training and figures. The product imports nothing of it."""
