"""MONAI Label's tasks: inference, training, strategies, scores."""
