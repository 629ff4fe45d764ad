"""Synthetic anatomy: training without patients, and the sample volumes."""
