"""TensorBoard: an event file in the run's folder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import hparams

from hpcdat.tracking.tracker import Point, TrackedRun


class TensorBoardTracker:
    """Writes RUN/tensorboard.

    Each start writes all points again, with the times of the earlier file, and then removes that file: a
    point of an epoch that is trained again would otherwise be there twice. A running TensorBoard drops what
    it has read before, as the file begins with a purge from step 0.

    Args:
        run: to record.
    """

    def __init__(self, run: TrackedRun) -> None:
        self._run = run
        self._folder = run.folder / "tensorboard"

    def begin(self, points: Sequence[Point]) -> None:  # noqa: D102
        self._folder.mkdir(exist_ok=True)
        earlier = sorted(self._folder.glob("events.out.tfevents.*"))
        times = self._times() if earlier else {}
        now = time.time()
        # Named after the time, by which TensorBoard orders the files of a folder.
        file = self._folder / f"events.out.tfevents.{int(now):010d}.{time.time_ns()}.hpcdat"
        self._writer = RecordWriter(file.open("wb"))
        self._write(Event(file_version="brain.Event:2", wall_time=now))
        self._write(Event(session_log=SessionLog(status=SessionLog.START), step=0, wall_time=now))
        for point in points:
            for name, value in point.values.items():
                self._scalar(name, value, point.epoch, times.get((name, point.epoch), now))
        self._writer.flush()
        for old in earlier:
            old.unlink()

    def add(self, point: Point) -> None:  # noqa: D102
        for name, value in point.values.items():
            self._scalar(name, value, point.epoch, time.time())
        self._writer.flush()

    def summarise(self, epoch: int, results: Mapping[str, float]) -> None:  # noqa: D102
        for summary in hparams(dict(self._run.settings), dict(results)):
            self._write(Event(summary=summary, wall_time=time.time()))
        for name, value in results.items():
            self._scalar(name, value, epoch, time.time())
        self._writer.flush()

    def close(self, *, finished: bool) -> None:  # noqa: D102
        self._writer.close()

    def _times(self) -> dict[tuple[str, int], float]:
        """When each point of the earlier files was recorded, seconds since 1970."""
        read = EventAccumulator(str(self._folder), size_guidance={"scalars": 0}).Reload()
        return {(name, e.step): e.wall_time for name in read.Tags()["scalars"] for e in read.Scalars(name)}

    def _scalar(self, name: str, value: float, epoch: int, when: float) -> None:
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
        self._write(Event(summary=summary, step=epoch, wall_time=when))

    def _write(self, event: Event) -> None:
        self._writer.write(event.SerializeToString())
