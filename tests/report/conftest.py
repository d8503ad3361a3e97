"""Folders of finished runs that were never run."""

import json

import pytest

from hpcdat.config.job_file import parse_job, write_job
from hpcdat.storage.atomic_files import write_text
from hpcdat.storage.run_folder import Result, RunFolder
from tests.browser import browser  # noqa: F401
from tests.report.benchmark_rows import exchange, file_of, row

JOB = """\
run_dir: {folder}
method: {method}
epochs: 2
batch_size: 25
reproduces: [{rows}]
data: {{source: digits, channels: 1, image_size: 8}}
model: {{name: digits-cnn, mean: [0.5], std: [0.25]}}
optimizer: {{lr: 0.1}}
attack: {{eps: {eps}}}
exchange: {{overlap: false{exchange}}}
"""


def makes_runs_in(parent):
    """What makes folders of finished runs in a folder."""

    def make(
        name,
        rows,
        *,
        method="dat-pgd",
        p=6,
        c=3.0,
        t=5.0,
        ta=0.9,
        mb=52.3,
        links="100mbit links",
        eps=0.1,
        seen=None,
        aa=(),
        fast_bound=None,
        others=(),
        seed=0,
        more="",
        exchange="",
        of_epochs=None,
        speed=None,
    ):
        folder = RunFolder(parent / name)
        folder.path.mkdir(parents=True)
        text = JOB.format(
            folder=str(folder.path).replace("$", "$$"),
            method=method,
            rows=rows,
            eps=eps,
            exchange=exchange and f", {exchange}",
        )
        job = parse_job(f"{text}seed: {seed}\n{more}", "x.yaml")
        write_text(folder.job_file, write_job(job))
        worker = {"host": "a", "device": "Some CPU", "cpus": 2, "threads": 1}
        environment = {"nodes": p, "workers": [worker] * p, "emulated_links": links}
        write_text(folder.environment_file, json.dumps(environment))
        for epoch in (1, 2):
            folder.log(
                event="epoch",
                epoch=epoch,
                images=600,
                total_seconds=t,
                communication_seconds=c,
                training_accuracy=seen and seen * epoch / 2,
                **(of_epochs or {}),
            )
        attack = "PGD-10, linf, eps 0.1"
        result = Result(
            method=method,
            seed=seed,
            p=p,
            q=1,
            batches=p,
            batch=25,
            images=397,
            ta=ta,
            ra=0.5,
            attack=attack,
            communication=c,
            total=t,
            exchange="ring, 32 bits",
            megabytes=mb,
            epoch=2,
            others=others,
            images_per_second=speed,
            fast_bound=fast_bound,
            **dict(zip(("aa", "aa_images", "aa_ta", "aa_ra"), aa, strict=False)),
        )
        folder.write_result(result, "")
        return folder.path

    return make


@pytest.fixture(scope="session")
def runs_in():
    """Called with a folder, gives what makes finished runs in it."""
    return makes_runs_in


@pytest.fixture
def make_run(tmp_path):
    """Makes the folder of a finished run."""
    return makes_runs_in(tmp_path)


@pytest.fixture
def files(tmp_path):
    """A folder with files of three runs of a benchmark, B a little and C much slower than A."""

    def swept(slowdown):
        rows = [
            row(*[slowdown * (1e-3 + size / 1e8)] * 6, size=size, figures={"busbw": 1.5e8 * size}, **kind)
            for size in (2**10, 2**16, 2**22)
            for kind in ({}, exchange("allgather"))
        ]
        return file_of(*rows, rate="10gbit")

    for name, slowdown in {"A": 1.0, "B": 1.05, "C": 1.25}.items():
        swept(slowdown).write(tmp_path / f"{name}.json")
    return tmp_path
