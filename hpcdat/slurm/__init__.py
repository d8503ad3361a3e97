"""Slurm: profiles of sites, scripts for ``sbatch``, and what happens when a job is preempted."""
