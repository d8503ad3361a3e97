"""Run folders and checkpoints: files written atomically, folders locked."""
