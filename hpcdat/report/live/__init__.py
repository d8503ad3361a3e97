"""A run that is under way, from the files in its folder: a snapshot, its text and its page."""
