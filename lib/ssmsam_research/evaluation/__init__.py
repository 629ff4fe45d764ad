"""How well and how fast: metrics, simulated annotators, protocols, and the records of their runs."""
