"""A cluster on one machine: nodes with rate-limited links and, if requested, its own Slurm."""
