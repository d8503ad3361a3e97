"""What is told of runs that are over."""
