"""Checks of exchanged sums, for any transport."""

import numpy as np

from tests.distributed.programs.exchange import EXCHANGES, vector_of
from tests.exchange import oracle


def check_against_numpy(sums, size):
    """Compare two steps of every exchange with the oracle.

    Args:
        sums: by exchange and step, the bytes that one rank received.
        size: number of workers M.
    """
    for number, settings in enumerate(EXCHANGES):
        residuals = [{} for _ in range(size)]
        for step in range(2):
            total = np.frombuffer(sums[number][step], dtype=np.float32)
            vectors = [vector_of(rank, step) for rank in range(size)]
            expected = oracle.expected(settings, vectors, residuals, step=step, bucket=number)
            if settings["protocol"] == "ring" and settings["bits"] in (32, "float16"):
                # The order in which floating-point numbers are added depends on the transport.
                scale = np.abs(vectors).sum(0) * (1e-6 if settings["bits"] == 32 else 4e-3) + 1e-30
                assert (np.abs(total - expected) <= scale).all(), settings
            else:
                assert total.tobytes() == expected.astype(np.float32).tobytes(), (settings, step)
