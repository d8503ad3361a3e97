"""A cluster on one machine: nodes with rate-limited links, and a Slurm of its own over them."""
