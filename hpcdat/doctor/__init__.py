"""Checks of the nodes and links of a run before it is started."""
