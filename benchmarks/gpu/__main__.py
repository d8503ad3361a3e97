"""The command line: ``python benchmarks/gpu SECTION...``."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:
    # Run as a folder, which Python puts first on sys.path: its concurrent.py, horovod.py and codec.py would
    # hide the modules of these names.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import tempfile
import threading

import torch
from arguments import Parser, errors_in_one_line, existing_file, folder_to_write, listed, positive, whole

from gpu.report import SECTIONS, goals_of, measure, merge, show, tables_of
from gpu.section import Call
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.errors import Exit, Stopped


@errors_in_one_line
def main() -> None:
    """Measure the sections, print their tables, write the JSON and the page.

    Raises:
        SystemExit: exit code 2 for wrong arguments, 75 when stopped, or that of the HpcdatError that ended
            the command.
    """
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.limit and not arguments.work:
        parser.error("--limit: also give --work, the folder to resume from")
    if arguments.merge and not arguments.json:
        parser.error("--merge: also give --json, the file to write")
    kind = "cuda" if arguments.device == "auto" and torch.cuda.is_available() else arguments.device
    if kind == "auto" and arguments.sections == ["page"]:
        kind = "cpu"
    if kind == "auto":
        parser.error("--device auto: torch finds no usable GPU; --device cpu --tiny tries everything out")
    if arguments.tiny:
        # Compiling would take most of the time.
        torch.compiler.set_stance("force_eager")
    stop = StopRequest()
    if arguments.limit:
        timer = threading.Timer(arguments.limit, lambda: setattr(stop, "requested", True))
        timer.daemon = True
        timer.start()
    with tempfile.TemporaryDirectory() as scratch:
        call = Call(
            device=torch.device(kind, *([0] if kind == "cuda" else [])),
            tiny=arguments.tiny,
            cifar=arguments.cifar,
            work=arguments.work or Path(scratch),
            seeds=tuple(arguments.seeds),
            rounds=arguments.rounds,
            stop=stop,
        )
        try:
            if arguments.merge:
                merge(arguments.merge, arguments.json)
            report = measure(call, arguments.sections, arguments.json)
            show(report)
            if arguments.page:
                # Only the page needs jinja2.
                from gpu.page import write_page

                tables = {"Goals": goals_of(report), **tables_of(report["sections"])}
                for written in write_page(report, tables, arguments.page):
                    print(f"written: {written}")
        except Stopped as error:
            print(f"{error}\nthe same command resumes", file=sys.stderr)
            raise SystemExit(Exit.STOPPED_RESUMABLE) from None


def _parser() -> Parser:
    parser = Parser("what one GPU does; see benchmarks/gpu/__init__.py", alone="it measures one GPU")
    parser.add_argument("sections", nargs="+", choices=[*SECTIONS, "page"], metavar="SECTION")
    parser.add_json()
    parser.add_argument(
        "--page", type=folder_to_write, metavar="FOLDER", help="write report.html, .md and .csv there"
    )
    parser.add_argument(
        "--merge", nargs="+", type=existing_file, metavar="JSON", help="first join these files into --json"
    )
    parser.add_device()
    parser.add_argument("--tiny", action="store_true", help="small models and few images, for a quick test")
    parser.add_cifar()
    parser.add_argument(
        "--work", type=folder_to_write, help="folder of the runs (default: one that is removed)"
    )
    parser.add_argument(
        "--seeds", type=listed(whole(0)), default="0,1,2", help="of the speed run (default: %(default)s)"
    )
    parser.add_rounds(10)
    parser.add_argument("--limit", type=positive, metavar="SECONDS", help="stop after that; needs --work")
    return parser


if __name__ == "__main__":
    main()
