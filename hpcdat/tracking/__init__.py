"""Trackers: a run's curves in TensorBoard, MLflow and Weights & Biases."""
