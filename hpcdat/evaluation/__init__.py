"""Measurements of a trained model, sharded over the workers and exact."""
