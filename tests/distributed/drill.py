"""Kill random workers at random moments, start the same command again, and compare the end.

``python -m tests.distributed.drill --kills 20`` (or ``make drill``) trains the demo's job once in
peace and once under fire, and exits with 0 only if weights and metrics agree bit for bit.
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch

from hpcdat.storage.run_folder import RunFolder
from tests.conftest import CHECKOUT, DEMO
from tests.distributed.ranks import environment

PATIENCE = 600
"""Seconds that a start may take, which on a slow machine has nearly all epochs before it."""
TIMES = ("total_seconds", "communication_seconds", "waited_seconds", "data_seconds", "workers")
TIMES += ("images_per_second", "data_share", "package_joules", "dram_joules")


def settings_of(run_dir, epochs):
    """Those of a run that writes a checkpoint after nearly every step, and has much to remember."""
    settings = [f"run_dir={run_dir}", f"epochs={epochs}", "attack.steps=2", "checkpoint_minutes=0.0001"]
    settings += ["evaluation.every=2", "evaluation.steps=3", "data.augmentation=crop-flip"]
    settings += ["early_stopping.patience=1000", "exchange.error_feedback=true"]
    return [*settings, "exchange.protocol=sharded_server", "exchange.bits=4", "exchange.two_sided=true"]


def command(run_dir, workers, epochs):
    """The command that trains it."""
    settings = settings_of(run_dir, epochs)
    return [sys.executable, "-m", "hpcdat", "train", str(DEMO), "--set", *settings, "-np", str(workers)]


def workers_of(run_dir):
    """The processes of the run's workers."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            arguments = (folder / "cmdline").read_bytes().decode().split("\0")
            environ = (folder / "environ").read_bytes().decode()
        except OSError:
            continue
        if (
            arguments[0] == sys.executable
            and f"run_dir={run_dir}" in arguments
            and "OMPI_COMM_WORLD_RANK=" in environ
        ):
            found.append(int(folder.name))
    return found


def under_fire(run_dir, workers, epochs, kills, chance):
    """Run to the end; the first ``kills`` starts lose a worker at a random moment.

    Returns how many starts were killed, and how many went on from the middle of an epoch.
    """
    amid = 0
    for attempt in range(kills + 1):
        process = subprocess.Popen(
            command(run_dir, workers, epochs),
            cwd=CHECKOUT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if attempt < kills:
            while process.poll() is None and len(workers_of(run_dir)) < workers:
                time.sleep(0.05)
            alive = workers_of(run_dir)
            if attempt % 2 == 0:
                # Every other kill hits a worker in the middle of an epoch; the rest may hit one that starts.
                wait_for_a_step(process, run_dir)
            time.sleep(chance.uniform(0.0, 2.0))
            if attempt % 2 == 0:
                wait_for_a_step(process, run_dir)
            if alive and process.poll() is None:
                with suppress(ProcessLookupError):
                    os.kill(chance.choice(alive), signal.SIGKILL)
        output, _ = process.communicate(timeout=PATIENCE)
        amid += bool(re.search(r"resuming from epoch \d+, step [1-9]", output))
        if process.returncode == 0:
            return attempt, amid
        if attempt == kills:
            raise SystemExit(f"the run did not end well after its last kill:\n{output}")
    return kills, amid


def wait_for_a_step(process, run_dir):
    """Wait until a checkpoint in the middle of an epoch is written."""
    file = RunFolder(run_dir).checkpoints.step_file

    def newest():
        with suppress(FileNotFoundError):
            return file.stat().st_mtime_ns

    before = newest()
    while process.poll() is None and newest() in (before, None):
        time.sleep(0.002)


def outcome(run_dir):
    """Weights and metrics of a finished run, without the clock's."""
    folder = RunFolder(run_dir)
    lines = folder.metrics("epoch") + folder.metrics("evaluation") + folder.metrics("finished")
    metrics = [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
    return folder.newest_checkpoint().model, metrics


def drill(folder, *, workers, epochs, kills, seed, peace):
    """Whether weights and metrics of a disturbed run equal an undisturbed one's, and how it was disturbed.

    Args:
        folder: for both runs.
        workers, epochs: of each.
        kills: number of starts of the disturbed run that lose a worker.
        seed: of the moments.
        peace: trains the undisturbed run, given its folder.
    """
    peace(folder / "peace")
    killed, amid = under_fire(folder / "fire", workers, epochs, kills, random.Random(seed))
    (weights, metrics), (fired_weights, fired_metrics) = outcome(folder / "peace"), outcome(folder / "fire")
    same_weights = all(torch.equal(weights[name], fired_weights[name]) for name in weights)
    return same_weights, metrics == fired_metrics, killed, amid


def main():
    """Run the drill and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    def peace(run_dir):
        train = command(run_dir, arguments.workers, arguments.epochs)
        subprocess.run(train, cwd=CHECKOUT, env=environment(), check=True, stdout=subprocess.DEVNULL)

    with tempfile.TemporaryDirectory(prefix="hpcdat-drill-") as folder:
        same_weights, same_metrics, killed, amid = drill(
            Path(folder),
            workers=arguments.workers,
            epochs=arguments.epochs,
            kills=arguments.kills,
            seed=arguments.seed,
            peace=peace,
        )
    print(
        f"{killed} starts ended by kill -9, {amid} went on from the middle of an epoch; "
        f"weights equal: {same_weights}; metrics equal: {same_metrics}"
    )
    sys.exit(0 if same_weights and same_metrics else 1)


if __name__ == "__main__":
    main()
