"""How the shipped weights are trained: task generators, episodes, and the loop."""
