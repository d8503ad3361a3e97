"""The doctor names what is wrong, where it is wrong, and nothing else."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from hpcdat.config.job_file import read_job
from hpcdat.config.sections import Data
from hpcdat.data.digits import write_digits
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.doctor import storage
from hpcdat.doctor.checks import (
    check_clocks,
    check_dali,
    check_energy,
    check_engine,
    check_gpus,
    check_images,
    check_pairs,
    check_resources,
    check_run_dir,
    check_storage,
    check_versions,
)
from hpcdat.doctor.examination import examine
from hpcdat.doctor.facts import Node, RunDir, clock_offsets
from hpcdat.doctor.library_logs import LibraryLogs
from hpcdat.doctor.links import Pair, pairs_of
from hpcdat.doctor.storage import Storage
from hpcdat.emulation.cluster import CARD, run_over_gloo
from hpcdat.hardware.network_cards import network_cards
from tests.conftest import CHECKOUT, DEMO, Never, run_here
from tests.distributed.ranks import environment

HPCDAT = [sys.executable, "-m", "hpcdat"]
GIB = 2**30
HEALTHY = Node(
    host="n1",
    versions={"python": "3.11.7", "torch": "2.11.0", "git commit": "abc"},
    horovod={"mpi": True, "gloo": True, "nccl": True},
    driver=True,
    gpus={"u0": "H200", "u1": "H200"},
    takes=["u0", "u1"],
    dali="2.4.0",
    dali_error="",
    cores=8,
    memory=64 * GIB,
    shared_memory=8 * GIB,
    classes=10,
    data_error="",
)
FOLDER = Data(root="/data")


def nodes(count=3, **of_the_last):
    """Healthy nodes n1, n2, ..., but for the last one."""
    made = [replace(HEALTHY, host=f"n{number}") for number in range(1, count + 1)]
    return [*made[:-1], replace(made[-1], **of_the_last)]


def test_healthy_nodes_have_no_findings():
    found = [
        *check_engine(nodes(), "horovod", "MPI"),
        *check_gpus(nodes(), "cuda", nccl=True),
        *check_dali(nodes(), "dali"),
        *check_versions(nodes()),
        *check_clocks(["n1", "n2", "n3"], [(0.0, 0.0), (0.2, 0.01), (-0.1, 0.01)]),
        *check_images(nodes(), FOLDER),
        *check_run_dir(RunDir("/runs", "", [], 100 * GIB), "n1"),
        *check_resources(nodes()),
        *check_energy(nodes()),
        *check_pairs([Pair("n1", "n2", 1e-3, 9e8), Pair("n1", "n3", 1e-3, 5e8)], 3),
    ]
    assert {finding.level for finding in found} == {"ok"}
    assert "n2 is 300.0 ms ahead of n3 (± 20.0 ms)" in found[4].found


def test_workers_that_nccl_does_not_connect_may_share_a_gpu():
    findings = check_gpus(nodes(takes=["u0", "u0"]), "auto", nccl=False)
    assert {finding.level for finding in findings} == {"ok"}


def test_energy_that_cannot_be_measured_is_no_warning():
    assert [(f.level, f.found, f.where) for f in check_energy(nodes(no_energy="processors: no"))] == [
        ("ok", "measured: GPUs and processors, as far as there are", "n1, n2"),
        ("ok", "not measured: processors: no", "n3"),
    ]


WITHOUT_NCCL = {"mpi": True, "gloo": True, "nccl": False}
CPU = {"gpus": {}, "takes": [None, None], "driver": False}


@pytest.mark.parametrize(
    "level, where, found, findings",
    [
        (
            "failure",
            "n3",
            "torch: 2.11.0 on n1, n2; 2.9.0 on n3",
            check_versions(nodes(versions=HEALTHY.versions | {"torch": "2.9.0"})),
        ),
        ("failure", "n3", "git commit: abc on n1, n2; none on n3", check_versions(nodes(versions={}))[-1:]),
        ("failure", "", "MPI, Gloo on n3", check_engine(nodes(horovod=WITHOUT_NCCL), "horovod", "MPI")),
        (
            "warning",
            "n1",
            "without NCCL",
            check_engine(nodes(1, horovod=WITHOUT_NCCL), "horovod", "Gloo")[1:],
        ),
        ("failure", "n3", "none, but device: cuda", check_gpus(nodes(**CPU), "cuda", nccl=True)),
        ("failure", "n3", "none, but others", check_gpus(nodes(**CPU), "auto", nccl=True)),
        ("warning", "", "1 x T4 on n3", check_gpus(nodes(gpus={"u": "T4"}, takes=["u"]), "auto", nccl=True)),
        (
            "warning",
            "n1",
            "no GPU that torch",
            check_gpus(nodes(1, **CPU | {"driver": True}), "auto", nccl=True)[:1],
        ),
        (
            "failure",
            "n3",
            "2 workers share 1 GPU, and NCCL needs one for each",
            check_gpus(nodes(takes=["u0", "u0"]), "auto", nccl=True)[1:],
        ),
        ("failure", "n3", "no libcuda", check_dali(nodes(dali=None, dali_error="no libcuda"), "dali")[1:]),
        ("warning", "n3", "no libcuda", check_dali(nodes(dali=None, dali_error="no libcuda"), None)[1:]),
        (
            "failure",
            "n3",
            "/data: gone",
            check_images(nodes(classes=None, data_error="/data: gone"), FOLDER)[:1],
        ),
        ("failure", "", "10 classes on n1, n2; 9 classes on n3", check_images(nodes(classes=9), FOLDER)),
        ("failure", "n3", "n1 wrote in /runs", check_run_dir(RunDir("/runs", "", ["n3"], 9 * GIB), "n1")[:1]),
        ("failure", "n1", "read-only", check_run_dir(RunDir("/runs", "read-only", [], 0), "n1")),
        ("warning", "n1", "1 GiB free", check_run_dir(RunDir("/runs", "", [], GIB), "n1")[1:]),
        ("warning", "n3", "1 core for 2 workers", check_resources(nodes(cores=1))),
        ("warning", "n3", "0.0625 GiB for 2 workers", check_resources(nodes(shared_memory=GIB // 16))),
        ("warning", "n3", "other processes use 1.5 of 8 cores", check_resources(nodes(busy=1.5))),
        ("failure", "n3", "TMPDIR=/x: gone", check_resources(nodes(temporary_error="TMPDIR=/x: gone"))),
        ("warning", "n3", "8 GiB for 2 workers", check_resources(nodes(), 5 * GIB)[-1:]),
        (
            "warning",
            "n1",
            "CUDA_VISIBLE_DEVICES=7 names none",
            check_gpus(
                nodes(1, **CPU | {"driver": True, "no_gpu": "CUDA_VISIBLE_DEVICES=7 names none"}),
                "auto",
                nccl=True,
            )[:1],
        ),
        (
            "warning",
            "n1, n2",
            "n2 is 2.5 s ahead of n1",
            check_clocks(["n1", "n2"], [(0.0, 0.0), (2.5, 0.01)]),
        ),
        (
            "warning",
            "n1",
            "reads 140 images/s (14 MB/s) while all nodes read; the job needs 100",
            check_storage([Storage("n1", 140.0, 14e6, 100.0)]),
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_host(level, where, found, findings):
    assert [(finding.level, finding.where) for finding in findings] == [(level, where)]
    assert found in findings[0].found and findings[0].advice


@pytest.mark.parametrize(
    ("found", "made", "engine", "transport"),
    [
        ("torch.distributed; transport Gloo", nodes(1, **CPU), "torch", "Gloo"),
        ("torch.distributed; transport Gloo, NCCL between GPUs", nodes(horovod=None), "torch", "Gloo"),
        ("torch.distributed; Horovod is not installed", nodes(1, horovod=None), "none", "none"),
    ],
)
def test_the_engine_is_reported(found, made, engine, transport):
    (finding,) = check_engine(made, engine, transport)
    assert (finding.level, finding.check, finding.found) == ("ok", "engine", found)


def test_storage_that_is_fast_enough_or_cannot_be_compared_is_no_warning():
    fast, unknown = check_storage([Storage("n1", 150.0, 15e6, 100.0), Storage("n2", 9.0, 1e6, None)])
    assert fast.level == unknown.level == "ok" and "too busy to time a step" in unknown.found


def test_clocks_are_read_off_the_tightest_gatherings():
    """Worker 1 is 5 s ahead; its stamp comes when it may, and the second gathering took long."""
    stamps = [[0.0, 5.02], [0.1, 5.9], [1.0, 6.01], [1.04, 6.05], [1.08, 6.1]]
    (_, none), (ahead, bound) = clock_offsets(stamps)
    assert none == 0 and bound == pytest.approx(0.04) and abs(ahead - 5) <= bound
    # Less than what the measurement may be off by is no difference.
    assert "measurement error of 40.0 ms" in check_clocks(["n1", "n2"], [(0.0, 0.0), (0.03, 0.04)])[0].found


def links(count, slow):
    """All pairs of nodes, of 100 MB/s but for the slow ones."""
    pairs = [(f"n{one + 1}", f"n{other + 1}") for one, other in pairs_of(count)]
    return [Pair(*pair, 1e-3, 20e6 if slow(pair) else 100e6) for pair in pairs]


@pytest.mark.parametrize("count", [3, 4, 6])
def test_a_slow_link_is_named(count):
    (finding,) = check_pairs(links(count, lambda pair: "n3" in pair), count)
    assert (finding.level, finding.where) == ("warning", "n3")
    assert "n1 - n3 20" in finding.found and "n1 - n2" not in finding.found
    (finding,) = check_pairs(links(count, lambda pair: pair == ("n2", "n3")), count)
    assert (finding.level, finding.where) == ("warning", "n2, n3")


def test_of_many_nodes_each_is_measured_with_its_successor():
    assert len(pairs_of(16)) == 120
    assert pairs_of(17) == [*((node, node + 1) for node in range(16)), (16, 0)]
    assert "successor" in check_pairs(links(17, lambda pair: False), 17)[0].found


def test_a_single_worker_checks_images_and_run_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_needed", lambda *_: 1.0)
    write_digits(tmp_path / "data")
    folder = ["data.source=folder", f"data.root={tmp_path / 'data'}"]
    run_dir = tmp_path / "file" / "run"
    healthy = read_job(DEMO, [*folder, f"run_dir={tmp_path / 'runs' / 'run'}"])
    report = examine(healthy, SingleProcess(), Never(), LibraryLogs())
    assert report.nodes[0].classes == 10 and report.run_dir.folder == str(tmp_path)
    assert "the job needs 1" in next(f.found for f in report.findings if f.check == "storage")
    assert not report.failed and [file.name for file in tmp_path.iterdir()] == ["data"]

    shutil.rmtree(tmp_path / "data" / "test")
    run_dir.parent.touch()
    sick = read_job(DEMO, [*folder, f"run_dir={run_dir}"])
    report = examine(sick, SingleProcess(), Never(), LibraryLogs())
    failures = {finding.check: finding.found for finding in report.findings if finding.level == "failure"}
    assert failures.keys() == {"images", "run_dir"}
    assert str(tmp_path / "data" / "test") in failures["images"]
    assert str(run_dir.parent) in failures["run_dir"]


def test_an_invalid_job_is_reported_before_anything_starts(tmp_path):
    (tmp_path / "job.yaml").write_text(DEMO.read_text() + "epocs: 3\n")
    done = run_here("doctor", tmp_path / "job.yaml", "-np", "2")
    assert done.returncode == 2 and done.stdout == ""
    assert "did you mean 'epochs'" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.distributed
def test_two_local_workers(tmp_path):
    file = tmp_path / "doctor.json"
    settings = ["--set", f"run_dir={tmp_path / 'run'}", "--json", str(file)]
    command = [*HPCDAT, "doctor", str(DEMO), "-np", "2", *settings]
    done = subprocess.run(
        command, cwd=CHECKOUT, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("2 workers on 1 node, started by mpirun") == 1
    assert "transport MPI" in done.stdout and "failures: 0" in done.stdout
    found = json.loads(file.read_text())
    assert [len(node["takes"]) for node in found["facts"]["nodes"]] == [2] and found["links"] == []
    assert list(tmp_path.iterdir()) == [file]
    assert found["transports"] == [{"host": "", "library": "Open MPI", "inside": ["sm"], "between": []}]
    assert "Connection summary" not in done.stdout
    cards = [sent["card"] for node in found["traffic"] for sent in node["sent"]]
    assert cards == [card.name for card in network_cards()]


@pytest.mark.full
@pytest.mark.distributed
def test_a_node_with_a_slow_link_and_without_the_shared_folders(make_box, tmp_path):
    made = make_box(nodes=3, rate="200mbit")
    for tc, device in (
        (["tc", "-n", made.namespace(3)], CARD),
        (["tc"], f"{made.bridge}n3"),
    ):
        bucket = ["tbf", "rate", "10mbit", "burst", "128kb", "latency", "100ms"]
        subprocess.run([*tc, "qdisc", "replace", "dev", device, "root", "handle", "1:", *bucket], check=True)
    shared, file = tmp_path / "shared", tmp_path / "doctor.json"
    write_digits(shared / "data")
    settings = [f"run_dir={shared / 'run'}", "data.source=folder", f"data.root={shared / 'data'}"]
    # Node 3 has a folder of its own where the others share one.
    private = f'if [ $SLURM_PROCID = 2 ]; then mount -t tmpfs none {shared}; fi; exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", private, "sh", *HPCDAT, "doctor", str(DEMO)]
    variables = environment()
    assert run_over_gloo(made, 3, [*command, "--json", str(file), "--set", *settings], variables) == 1
    found = json.loads(file.read_text())
    # The machine's other processes use the cores of all nodes.
    findings = [f for f in found["findings"] if f["level"] != "ok" and f["check"] != "cores"]
    wrong = {f["check"]: (f["level"], f["where"]) for f in findings}
    assert wrong == {
        "images": ("failure", "node3"),
        "run_dir": ("failure", "node3"),
        "links": ("warning", "node3"),
    }
    slowest = min(found["links"], key=lambda link: link["bandwidth"])
    assert "node3" in (slowest["one"], slowest["other"]) and slowest["bandwidth"] < 4e6
    assert all(clock["error_bound"] < 1 for clock in found["facts"]["clocks"])
    assert sorted(entry.name for entry in shared.iterdir()) == ["data"]
