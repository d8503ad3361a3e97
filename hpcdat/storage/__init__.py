"""Run folders and checkpoints: atomic writes and locked folders."""
