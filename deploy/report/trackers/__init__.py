"""Trackers of experiments that a run's numbers also go to: Weights & Biases, MLflow, Trackio. Each an extra."""
