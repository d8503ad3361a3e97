"""The inner maximisation of adversarial training, (A1): PGD and the balls that perturbations come from."""
