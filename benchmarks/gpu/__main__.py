"""The command line: ``python benchmarks/gpu SECTION...``."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:
    # Run as a folder, which Python puts first on sys.path: its concurrent.py, horovod.py and codec.py would
    # hide the modules of these names.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import tempfile
import threading

import torch

from gpu.report import SECTIONS, measure, show, tables_of
from gpu.section import Call
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.errors import Exit, HpcdatError, Stopped


def main() -> None:
    """Measure the sections, print their tables, write the JSON and the page.

    Raises:
        SystemExit: exit code 1 if the arguments do not fit together or there is no GPU, 2 for an unknown
            argument, 75 when stopped, or that of the HpcdatError that ended the command.
    """
    arguments = _parser().parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU that torch can use; --device cpu --tiny tries it out")
    if arguments.limit and not arguments.work:
        raise SystemExit("--limit: also give --work, the folder to resume from")
    stop = StopRequest()
    if arguments.limit:
        timer = threading.Timer(arguments.limit, lambda: setattr(stop, "requested", True))
        timer.daemon = True
        timer.start()
    with tempfile.TemporaryDirectory() as scratch:
        call = Call(
            device=torch.device(arguments.device, *([0] if arguments.device == "cuda" else [])),
            tiny=arguments.tiny,
            cifar=arguments.cifar,
            work=arguments.work or Path(scratch),
            seeds=tuple(int(seed) for seed in arguments.seeds.split(",")),
            rounds=arguments.rounds,
            stop=stop,
        )
        try:
            report = measure(call, arguments.sections, arguments.json)
            show(report)
            if arguments.page:
                # Only the page needs jinja2.
                from gpu.page import write_page

                for written in write_page(report, tables_of(report["sections"]), arguments.page):
                    print(f"written: {written}")
        except Stopped as error:
            print(f"{error}\nthe same command resumes", file=sys.stderr)
            raise SystemExit(Exit.STOPPED_RESUMABLE) from None
        except HpcdatError as error:
            print(error, file=sys.stderr)
            raise SystemExit(error.exit_code) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="what one GPU does; see benchmarks/gpu/__init__.py")
    parser.add_argument("sections", nargs="+", choices=[*SECTIONS, "page"], metavar="SECTION")
    parser.add_argument("--json", type=Path, help="merge device, versions, date, sections and ratios into it")
    parser.add_argument("--page", type=Path, metavar="FOLDER", help="write report.html, .md and .csv there")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small models and few images, for a quick test")
    parser.add_argument("--cifar", type=Path, help="folder that holds cifar-10-batches-py")
    parser.add_argument("--work", type=Path, help="folder of the runs (default: one that is removed)")
    parser.add_argument("--seeds", default="0,1,2", help="of the speed run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="repetitions of what is timed")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="stop after that; needs --work")
    return parser


if __name__ == "__main__":
    main()
