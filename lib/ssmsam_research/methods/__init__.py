"""What is compared: our methods, the published ones, and what a user would pick instead."""
