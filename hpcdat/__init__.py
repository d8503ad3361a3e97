"""hpcdat: distributed (DAT) and concurrent (ConAdv) adversarial training on many machines."""

__version__ = "0.1.0"
