"""``hpcdat demo``."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from hpcdat.cli.options import Settings, path
from hpcdat.commands.shipped_jobs import FOLDER
from hpcdat.config.paths import escape


def demo(
    settings: Settings = None,
    workers: Annotated[
        int, typer.Option("-np", "--workers", min=1, help="Train with this many workers on this machine.")
    ] = 2,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of the two runs (default: runs).", parser=path),
    ] = None,
) -> None:
    """Train on handwritten digits, adversarially and plainly, and compare the robustness.

    \b
    Examples:
      hpcdat demo
      hpcdat demo -np 1 epochs=5
      hpcdat demo engine=torch

    The images (1,797 digits of 8x8 pixels) are part of scikit-learn; nothing is downloaded. An earlier demo
    in the folder is replaced. The commands are printed as they are run.
    """
    runs = out or Path("runs")
    methods: dict[str, list[str]] = {"demo": [], "demo-plain": ["method=plain"]}
    for name, method in methods.items():
        own = [*method, f"run_dir={escape(runs / name)}", *(settings or [])]
        _run("train", str(FOLDER / "demo.yaml"), "-np", str(workers), "--overwrite", *own)
    print("\nThe digits, trained adversarially and trained plainly:\n", flush=True)
    _run("report", *(str(runs / name) for name in methods))


def _run(*arguments: str) -> None:
    """Run ``hpcdat ARGUMENTS`` and wait for it.

    Raises:
        typer.Exit: it failed, with its exit code.
    """
    print(f"$ hpcdat {shlex.join(arguments)}", flush=True)
    process = subprocess.Popen([sys.executable, "-m", "hpcdat", *arguments])
    while True:
        try:
            code = process.wait()
            break
        except KeyboardInterrupt:
            # The terminal has sent the interrupt to that process too, which leaves a checkpoint.
            continue
    if code:
        raise typer.Exit(code if code > 0 else 128 - code)
