"""How the small model is trained: task generators, episodes, and the loop. Needs torch, numpy, scipy, scikit-image."""
