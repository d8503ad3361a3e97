"""Set up every version of torch, run the tests without workers and the demo, and print a table.

``python -m tests.matrix [TORCH...]`` (or ``make matrix``) takes the sets of ``requirements/``, such as 2.14
or 2.14-cpu, one after the other, each in an environment of its own. What an earlier call has found is read,
not measured again; ``--again`` forgets it. The exit code is 1 if a set-up or a test failed.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
SETS = sorted(file.stem.removeprefix("torch-") for file in (CHECKOUT / "requirements").glob("torch-*.txt"))
VERSIONS = """
import importlib.metadata as m, json, platform, torch, torchvision
have = {d.metadata["Name"].lower(): d.version for d in m.distributions()}
print(json.dumps({"Python": platform.python_version(), "torch": torch.__version__, "torchvision":
torchvision.__version__, "CUDA": torch.version.cuda or "-", "NCCL": have.get("nvidia-nccl-cu13", "-")}))
"""
COLUMNS = ("Python", "torch", "torchvision", "CUDA", "NCCL", "set-up", "Horovod built", "tests", "demo")


def examine(name: str, python: str, folder: Path, *, keep: bool) -> dict[str, str]:
    """Set up one version and try it.

    Args:
        name: of the set.
        python: the interpreter.
        folder: for the environment, the logs and the runs.
        keep: whether the environment is kept.

    Returns:
        The cells of its row, by column.
    """
    venv, log = folder / "venv", folder / "matrix.log"
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    requirements = CHECKOUT / "requirements" / f"torch-{name}.txt"
    install = [python, "-m", "hpcdat.install", "--venv", str(venv), "--requirements", str(requirements)]
    output, code = run(install, log)
    row = {"torch": name, "set-up": f"{time.monotonic() - began:.0f} s" if code == 0 else "failed"}
    built = re.search(r"built in (\d+ s)", output)
    row["Horovod built"] = built[1] if built else "cached" if "from the cache" in output else "-"
    if code == 0:
        versions, _ = run([str(venv / "bin" / "python"), "-c", VERSIONS], log)
        row |= json.loads(versions.splitlines()[-1])
        pytest = [str(venv / "bin" / "python"), "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile"]
        output, _ = run([*pytest, "-m", "not full and not distributed"], log)
        summary = [line for line in output.splitlines() if re.search(r"\d+ (passed|failed|error)", line)]
        row["tests"] = (
            re.sub(r"=+|,? \d+ warnings?| in .*", "", summary[-1]).strip() if summary else "did not run"
        )
        runs = folder / "runs"
        _, failed = run([str(venv / "bin" / "hpcdat"), "demo", "--out", str(runs)], log)
        row["demo"] = "failed" if failed else "; ".join(map(accuracies, (runs / "demo", runs / "demo-plain")))
    if not keep:
        shutil.rmtree(venv, ignore_errors=True)
    return row


def accuracies(run_dir: Path) -> str:
    """TA / RA of a run, in %."""
    result = json.loads((run_dir / "result.json").read_text())
    return f"{100 * result['ta']:.2f} / {100 * result['ra']:.2f}"


def run(command: list[str], log: Path) -> tuple[str, int]:
    """Output and exit code of a command, whose output goes to the log as well."""
    done = subprocess.run(command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with log.open("a") as file:
        file.write(f"$ {' '.join(command)}\n{done.stdout}\n")
    return done.stdout, done.returncode


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument(
        "sets", nargs="*", metavar="TORCH", help=f"of {', '.join(SETS)} (default: all for CUDA)"
    )
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environments")
    parser.add_argument(
        "--folder", type=Path, default=CHECKOUT / "runs" / "matrix", help="of all that is made"
    )
    parser.add_argument("--keep", action="store_true", help="keep the environments, 7 GB each")
    parser.add_argument("--again", action="store_true", help="forget earlier results")
    arguments = parser.parse_args()
    chosen = arguments.sets or [name for name in SETS if not name.endswith("-cpu")]
    if unknown := set(chosen) - set(SETS):
        parser.error(f"no set {sorted(unknown)[0]}: there are {', '.join(SETS)}")
    rows = []
    for name in chosen:
        folder = arguments.folder / f"{name}-{Path(arguments.python).name}"
        result = folder / "result.json"
        if arguments.again or not result.exists():
            print(f"torch {name}: {folder / 'matrix.log'}", flush=True)
            row = examine(name, arguments.python, folder, keep=arguments.keep)
            result.write_text(json.dumps(row, indent=2) + "\n")
        rows.append(json.loads(result.read_text()))
    print(f"\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for row in rows:
        print(f"| {' | '.join(row.get(column, '-') for column in COLUMNS)} |")
    return int(not all(has_passed(row) for row in rows))


def has_passed(row: dict[str, str]) -> bool:
    """Whether the tests and the demo of a version have passed."""
    return "passed" in row.get("tests", "") and not re.search("failed|error", row["tests"] + row["demo"])


if __name__ == "__main__":
    sys.exit(main())
