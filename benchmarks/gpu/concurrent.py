"""ConAdv, DisAdv and vanilla training of ResNet-50 on one worker, as ``benchmarks/conadv.py`` measures them.

Batches of 64 and of 256 images of 224x224, in bfloat16; those of 64 also with the network compiled.

Ratios:

- ``conadv_over_disadv_64``: throughput of ConAdv over that of DisAdv at 64 images, both compiled or both
  eager, whichever is faster for ConAdv.
"""

from __future__ import annotations

import argparse

import conadv
import torch

from gpu.section import Call, Keep, Measured, Table, free_memory, number


def measure(call: Call, before: Measured, keep: Keep) -> None:
    """Time the steps of every batch size."""
    reduced = ["model.precision=bfloat16", "model.channels_last=true"]
    given = {"model": "resnet50", "width": 1.0, "size": 224, "rounds": call.rounds, "steps": 3}
    if call.tiny:
        given |= {"model": "preact-resnet18", "width": 0.1, "size": 16, "steps": 1}
    measured: Measured = {}
    # Compiling takes longest.
    for batch, kind in ((64, "bfloat16"), (256, "bfloat16"), (64, "bfloat16, compiled")):
        compiled = ["model.compiled=true"] if kind.endswith("compiled") else []
        sizes = {"batch": batch // 16 if call.tiny else batch, "set": [*reduced, *compiled]}
        arguments = argparse.Namespace(device=call.device.type, **given, **sizes)
        name = f"{batch} images, {kind}"
        try:
            report = conadv.on_one_worker(arguments)
            measured[name] = report | conadv.concluded(report, arguments)
        except torch.OutOfMemoryError as error:
            measured[name] = {"missing": f"not measured (out of memory: {str(error).splitlines()[0]})"}
        keep(measured)
        free_memory(call.device)


def ratios(measured: Measured) -> dict[str, float | str]:
    """ConAdv's speed over DisAdv's at 64 images."""
    timed = [part for name, part in measured.items() if name.startswith("64 ") and "ratios" in part]
    if not timed:
        return {}
    fastest = min(timed, key=lambda part: part["medians"]["ConAdv"])
    return {"conadv_over_disadv_64": fastest["ratios"]["beside_over_disadv"]}


def tables(measured: Measured) -> dict[str, Table]:
    """Milliseconds of a step of each method, medians; a table for each batch size."""
    found: dict[str, Table] = {}
    for name, part in measured.items():
        medians = part.get("medians", {})
        rows = [[what, number(time, 2, 1e3)] for what, time in medians.items() if "busy" not in what]
        found[f"Concurrency, {name}"] = ["a step of", "ms"], rows or [[part["missing"], ""]]
    return found
