"""``hpcdat pseudo-label``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpcdat.cli.options import SetOption, Settings, WorkersOption
from hpcdat.cli.worker_process import as_worker, reported_once, start_locally
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.storage.run_folder import RunFolder

if TYPE_CHECKING:
    from hpcdat.distributed.communicator import Communicator


def pseudo_label(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)],
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGES",
            help="A folder of images, or a .npy file: (N, H, W, C), uint8.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.npz", help="What to write.", show_default=False)],
    settings: Settings = None,
    set_: SetOption = None,
    workers: WorkersOption = 1,
) -> None:
    """Give images the labels that a run's model would give them.

    A job trains on them beside its labelled images: data.unlabelled=OUT.npz, data.unlabelled_part=0.5
    """
    replaced = [*(set_ or []), *(settings or [])]
    resolved = reported_once(lambda: RunFolder(run).read_job(replaced))
    if workers > 1:
        start_locally(workers)

    def work(team: Communicator, stop: StopRequest) -> dict[str, int]:
        from hpcdat.commands.pseudo_label import pseudo_label

        return pseudo_label(run, source, out, replaced, team, stop)

    counts = as_worker(work, resolved)
    if counts is not None:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        print(f"{out}: {sum(counts.values())} images: {told}")
