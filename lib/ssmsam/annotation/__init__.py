"""What is known of each label on each slice: annotated, predicted, or unknown; and the support set made from it."""
