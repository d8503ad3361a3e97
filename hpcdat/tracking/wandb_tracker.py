"""Weights & Biases: files in the run's folder, or its server if ``WANDB_MODE`` is ``online``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import wandb

from hpcdat.tracking.tracker import Point, TrackedRun

PROJECT = "hpcdat"
"""The project of all runs, unless ``WANDB_PROJECT`` names another."""


class WandbTracker:
    """Writes RUN/wandb, or to a server.

    Points are numbered. The server has the number of those it holds, and those are not sent again. Offline,
    each start writes all points to a new folder, and the folders that it replaces are removed at its end.

    Args:
        run: to record.
    """

    def __init__(self, run: TrackedRun) -> None:
        self._run = run
        self._number = 0

    def begin(self, points: Sequence[Point]) -> None:  # noqa: D102
        self._opened = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=self._run.id,
            name=self._run.folder.name,
            dir=str(self._run.folder),
            resume="allow",
            config=dict(self._run.settings),
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,
            ),
        )
        self._recorded = self._opened.step
        self._opened.define_metric("*", step_metric="epoch")
        for point in points:
            self.add(point)

    def add(self, point: Point) -> None:  # noqa: D102
        if self._number >= self._recorded:
            self._opened.log({"epoch": point.epoch, **point.values}, step=self._number)
        self._number += 1

    def summarise(self, epoch: int, results: Mapping[str, float]) -> None:  # noqa: D102
        self._opened.summary.update(dict(results))

    def close(self, *, finished: bool) -> None:  # noqa: D102
        here = Path(self._opened.dir).parent
        self._opened.finish(exit_code=0 if finished else 1)
        if self._opened.offline:
            for folder in (self._run.folder / "wandb").glob(f"offline-run-*-{self._run.id}"):
                if folder.resolve() != here.resolve():
                    shutil.rmtree(folder)
