"""Encoding and decoding of 25.6 million numbers, as ``benchmarks/codec.py`` measures them.

Ratios:

- ``codec_of_copy_bandwidth``: bytes that encoding and decoding must move over their time, over the same of a
  copy.
"""

from __future__ import annotations

from statistics import median

import codec

from gpu.section import Call, Keep, Measured, Table, number


def measure(call: Call, before: Measured, keep: Keep) -> None:
    """Time the quantizer at every number of bits."""
    count = 2**16 if call.tiny else 25_600_000
    report = codec.measure(count, call.rounds, call.device)
    # The whole report has it already.
    del report["environment"]
    bandwidth = 8 * count / median(report["seconds"]["copy"])
    keep(report | {"copy_gigabytes_per_second": bandwidth / 1e9})


def ratios(measured: Measured) -> dict[str, float | str]:
    """The codec's share of the bandwidth of a copy."""
    return {"codec_of_copy_bandwidth": measured["ratios"]["codec_of_copy_bandwidth"]}


def tables(measured: Measured) -> dict[str, Table]:
    """Milliseconds of every part, medians."""
    rows = [[part, number(median(times), 3, 1e3)] for part, times in measured["seconds"].items()]
    return {f"The codec, {measured['settings']['count']:,} numbers": (["", "ms"], rows)}
