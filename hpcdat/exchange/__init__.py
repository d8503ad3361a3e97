"""The gradient exchange: worker-server communication of Algorithm 1, steps 4 to 7."""
