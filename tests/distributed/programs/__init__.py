"""What the ranks of the distributed tests do; each program returns a JSON value.

By subject, so that ranks need not import more than theirs: it takes longer than what most of them do.
"""
