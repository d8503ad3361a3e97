"""What a run uses of its hardware: energy, and memory and utilisation of GPUs."""
