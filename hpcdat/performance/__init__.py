"""Predicted time and traffic of a job on more nodes than there are here."""
