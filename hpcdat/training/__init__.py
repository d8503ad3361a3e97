"""Training: Algorithm 1 of the DAT and ConAdv papers, its epochs, checkpoints and validation."""
