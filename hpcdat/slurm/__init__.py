"""Slurm: profiles of sites, scripts for ``sbatch``, and the requeueing of jobs that have ended."""
