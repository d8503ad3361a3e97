"""The convergence theorems of both papers, run on a problem where their constants can be computed.

``regression`` is the problem; ``descent`` runs an algorithm on it and records the constants known only from
the run; ``comparison`` compares a bound with a measurement; ``theorem_2`` is DAT's bound; ``conadv`` are
ConAdv's; ``slopes`` is DAT's Theorem 1, which names no constant; ``figures`` draws.
"""
