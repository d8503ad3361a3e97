"""The inner maximisation of adversarial training, (A1): PGD and the balls that bound its perturbations."""
