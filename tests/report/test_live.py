"""A run that is under way: what is said of it, from recorded files."""

import json
import os
import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from statistics import median

import pytest

from hpcdat.cli import live_report
from hpcdat.errors import InputError
from hpcdat.report.live import snapshot as snapshot_module
from hpcdat.report.live.server import PageServer, snapshot_json
from hpcdat.report.live.snapshot import take_snapshot
from hpcdat.report.live.terminal import BLOCKS, LETTERS, sparkline, terminal_text
from hpcdat.storage.run_folder import RunFolder
from tests.browser import SECONDS
from tests.conftest import python_threads, run_here

RECORDED = Path(__file__).parent / "recorded_run"
"""The demo with epochs=6 and evaluation.every=2, as it was when it had ended: ten lines of metrics."""
LINES = (RECORDED / "metrics.jsonl").read_text().splitlines(keepends=True)
NOW = 1_800_000_000.0


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Makes the folder of the run as it was after some lines, last changed a second ago; it is locked."""
    folder = tmp_path / "run"
    shutil.copytree(RECORDED, folder)

    def make(lines, *, locked=True, more="", seconds_ago=1.0):
        monkeypatch.setattr(snapshot_module, "is_locked", lambda path: locked)
        metrics = folder / "metrics.jsonl"
        metrics.write_text("".join(LINES[:lines]) + more) if lines or more else metrics.unlink(
            missing_ok=True
        )
        for file in folder.iterdir():
            os.utime(file, (NOW - seconds_ago,) * 2)
        return folder

    return make


def test_a_run_under_way(run):
    taken = take_snapshot(run(5), NOW)
    lines = [json.loads(line) for line in LINES[:5]]
    epochs = [line for line in lines if line["event"] == "epoch"]
    assert (taken.state, taken.remark, taken.epoch, taken.epochs) == ("training", "", len(epochs), 6)
    assert (taken.method, taken.exchange) == ("dat-pgd", "ring, 32 bits")
    assert taken.workers == "1 (nodes: 1; AMD EPYC)"
    assert taken.curves["train/cost"] == [(line["epoch"], line["cost"]) for line in epochs]
    assert taken.curves["time/images_per_second"][-1][1] == epochs[-1]["images_per_second"]
    (evaluation,) = [line for line in lines if line["event"] == "evaluation"]
    assert taken.curves["test/RA_percent"] == [(2, 100 * evaluation["ra"])]
    usual = median(line["total_seconds"] for line in epochs)
    assert taken.epoch_seconds == usual
    assert taken.left_seconds == pytest.approx((6 - len(epochs)) * usual - 1)
    assert (taken.unchanged_seconds, taken.warnings, taken.log) == (1, [], [])


def test_the_time_left_counts_the_epoch_at_hand_at_most_once(run):
    usual = take_snapshot(run(5), NOW).epoch_seconds
    assert take_snapshot(run(5, seconds_ago=1000), NOW).left_seconds == pytest.approx(usual)
    assert take_snapshot(run(5, seconds_ago=-50), NOW).unchanged_seconds == 0, "clocks may differ"


def test_a_run_that_has_just_begun_has_no_values_and_no_time_left(run):
    taken = take_snapshot(run(0), NOW)
    assert (taken.state, taken.epoch, taken.curves) == ("starting", 0, {})
    assert taken.epoch_seconds is taken.left_seconds is None
    text = terminal_text(taken, 80)
    assert "starting\nepoch 0 of 6 done; last change 1 s ago\n" in text and "no epoch is done yet" in text


@pytest.mark.parametrize("half", ['{"event": "epoch", "epo', "{", '{"event": "finished"}'])
def test_a_line_that_is_being_written_does_not_count(half, run):
    assert take_snapshot(run(5, more=half), NOW) == take_snapshot(run(5), NOW)


def test_a_finished_run_says_where_its_result_is(run):
    folder = run(len(LINES), locked=False)
    taken = take_snapshot(folder, NOW)
    assert (taken.state, taken.epoch, taken.left_seconds) == ("finished", 6, None)
    assert taken.remark == f"`hpcdat report {folder}` shows the result"


def test_an_epoch_without_its_time_is_a_damaged_file(run):
    folder = run(5, locked=False)
    RunFolder(folder).log(event="epoch", epoch=4)
    with pytest.raises(InputError, match=r"metrics.jsonl cannot be read: an epoch without number or time"):
        take_snapshot(folder, NOW)


@pytest.mark.parametrize(
    "ends, remark",
    [
        (None, "stopped, killed or failed; `hpcdat train "),
        (
            [1, 75],
            "its Slurm job stopped early, with a checkpoint; if Slurm does not requeue it, `hpcdat train ",
        ),
        ([75, 1], "its Slurm job failed with exit code 1: see the log in "),
    ],
)
def test_a_run_that_does_not_train_says_why_if_that_is_known(ends, remark, run):
    folder = run(5, locked=False)
    if ends:
        (folder / "slurm").mkdir()
        text = "".join(json.dumps({"time": 0, "job": "7", "code": code}) + "\n" for code in ends)
        (folder / "slurm" / "ends.jsonl").write_text(text)
    taken = take_snapshot(folder, NOW)
    assert (taken.state, taken.left_seconds) == ("not running", None)
    assert taken.remark.startswith(remark) and f"`hpcdat train {folder}/job.yaml` resumes it" in taken.remark


def test_without_locks_it_is_unknown_whether_it_trains(run):
    taken = take_snapshot(run(5, locked=None), NOW)
    assert taken.state == "unknown" and "no locks" in taken.remark and taken.left_seconds is None


def test_warnings_are_of_the_metrics_and_of_the_newest_log(run):
    epoch = json.loads(LINES[0]) | {
        "epoch": 3,
        "skipped_steps": 2,
        "skipped_images": 1500,
        "cost": float("nan"),
    }
    collapse = {"event": "overfitting", "epoch": 3, "ra": 0.1, "best_ra": 0.5}
    folder = run(2, more=json.dumps(epoch) + "\n" + json.dumps(collapse) + "\n")
    (folder / "slurm").mkdir()
    log = ["a", "x: warning: cores are shared", "epoch 3/6:  10%\repoch 3/6:  20%", "\x1b[31mred\x07 end"]
    for age, name, lines in ((9, "6.log", ["warning: of an older job"]), (8, "7.log", log)):
        (folder / "slurm" / name).write_text("\n".join(lines) + "\n")
        os.utime(folder / "slurm" / name, (NOW - age,) * 2)
    taken = take_snapshot(folder, NOW)
    assert taken.warnings == [
        "epoch 3: left out, steps that were not finite: 2",
        "epoch 3: left out, unreadable images: 1,500",
        "epoch 3: catastrophic overfitting: RA on training images fell from 50.0 to 10.0 %",
        "x: warning: cores are shared",
    ]
    assert taken.log == ["x: warning: cores are shared", "epoch 3/6:  20%", " [31mred  end"]
    assert len(taken.curves["train/cost"]) == 2, "a cost that is not finite is no point of a curve"
    json.loads(snapshot_json(taken), parse_constant=pytest.fail)


def test_no_checkpoint_is_opened(run, monkeypatch):
    folder = run(5)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "epoch.pt").write_text("not to be read")
    opened = []
    original = Path.open

    def watched(self, *args, **kwargs):
        opened.append(self.name)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", watched)
    take_snapshot(folder, NOW)
    assert "metrics.jsonl" in opened and "epoch.pt" not in opened


@pytest.mark.parametrize("columns", [20, 80, 200])
@pytest.mark.parametrize("blocks", [True, False])
def test_the_text_fits_its_terminal(columns, blocks, run):
    text = terminal_text(take_snapshot(run(len(LINES) - 1), NOW), columns, blocks=blocks)
    assert max(map(len, text.splitlines())) <= columns
    if columns == 80:
        values = [json.loads(line)["cost"] for line in LINES if '"cost"' in line]
        (line,) = [line for line in text.splitlines() if line.startswith("cost")]
        assert re.split(r"  +", line) == [
            "cost",
            f"{values[-1]:.4g}",
            sparkline(values, 44, BLOCKS if blocks else LETTERS),
        ]
        assert re.search(r"^RA, test +64\.99 % ", text, re.MULTILINE)
    assert blocks or text.isascii()


def test_no_part_of_a_remark_or_warning_is_cut_off(run):
    folder = run(
        5, locked=False, more=json.dumps({"event": "overfitting", "epoch": 4, "ra": 0, "best_ra": 1}) + "\n"
    )
    taken = take_snapshot(folder, NOW)
    text = " ".join(terminal_text(taken, 50).split())
    for part in (taken.remark, *taken.warnings):
        assert part.replace("/", "").replace(" ", "") in text.replace("/", "").replace(" ", "")


def test_a_sparkline_has_the_lowest_and_the_highest_level():
    assert sparkline([1, 2, 3], 10, "abc") == "abc"
    assert sparkline([5, 0, 1, 3], 3, "abcd") == "abd", "the latest"
    assert sparkline([2, 2], 10, "abc") == "aa"


def test_the_command_prints_once_where_there_is_no_terminal(run):
    done = run_here("report", "--live", run(5))
    assert done.returncode == 0 and "\x1b" not in done.stdout and "epoch 4 of 6 done" in done.stdout


def test_the_terminal_is_redrawn_until_the_run_has_ended(run, monkeypatch, capsys):
    folder = run(5)
    monkeypatch.setattr(live_report.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(live_report.time, "sleep", lambda seconds: run(len(LINES), locked=False))
    live_report.report_live(folder, None)
    shown = capsys.readouterr().out.split(live_report.TOP_LEFT)
    assert len(shown) == 4 and "epoch 4 of 6 done" in shown[2] and "finished" in shown[3]


def test_ctrl_c_ends_the_view_and_is_no_failure(run, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(live_report.time, "sleep", interrupt)
    done = run_here("report", "--live", run(5), "--port", "0")
    assert done.returncode == 0
    assert re.fullmatch(
        r"http://127\.0\.0\.1:(\d+)/\S+/\n"
        r"from another machine: ssh -N -L \1:127\.0\.0\.1:\1 \S+@\S+, then .*\n"
        r"Ctrl-C ends .*\n\n",
        done.stdout,
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--live", "nowhere"], "nowhere is not the folder of a run: it has no job.yaml"),
        (["--live", "a", "b"], "--live: expected one run, not 2"),
        (["--live", "a", "--table", "dat-1", "--title", "b"], "--table, --title: not allowed with --live"),
        (["a", "--port", "8000"], "--port: only with --live"),
    ],
)
def test_wrong_arguments_end_in_one_line(arguments, message):
    done = run_here("report", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{message}\n")


def test_a_port_that_is_taken_is_refused(run):
    folder = run(5)
    with PageServer(lambda: take_snapshot(folder, NOW), 0) as server:
        done = run_here("report", "--live", folder, "--port", server.port)
    assert done.returncode == 2
    assert done.stderr == f"--port {server.port}: cannot be used: Address already in use\n"


def test_the_page_is_served_below_its_secret_path_only(run):
    folder = run(5)
    before = python_threads()
    with PageServer(lambda: take_snapshot(folder, NOW), 0) as server:

        def get(path):
            return urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=20)

        assert b"<title>A run of hpcdat</title>" in get(server.path).read()
        answer = get(f"{server.path}snapshot.json")
        assert json.loads(answer.read()) == json.loads(snapshot_json(take_snapshot(folder, NOW)))
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        for path in ("/", "/snapshot.json", f"{server.path}../{server.path}", f"{server.path}job.yaml"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                get(path)
        (folder / "metrics.jsonl").write_text("damaged\n")
        with pytest.raises(urllib.error.HTTPError, match="503") as raised:
            get(f"{server.path}snapshot.json")
        assert b"metrics.jsonl cannot be read" in raised.value.read()
    for thread in python_threads() - before:
        thread.join(SECONDS)
    assert not python_threads() - before


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_run_and_its_end_without_loading_anything_again(scheme, run, browser):
    folder = run(5)
    warning = json.loads(LINES[0]) | {"epoch": 5, "skipped_steps": 1}
    (folder / "metrics.jsonl").open("a").write(json.dumps(warning) + "\n")
    with PageServer(lambda: take_snapshot(folder, NOW), 0) as server:
        context = browser.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 800})
        page = context.new_page()
        page.set_default_timeout(1000 * SECONDS)
        errors, requests = [], []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: requests.append((request.resource_type, request.url)))
        page.goto(server.address)
        page.get_by_text("epoch 5 of 6 done").wait_for()
        assert page.locator("#state").inner_text() == "training"
        assert page.locator("#warnings li").all_inner_texts() == [
            "epoch 5: left out, steps that were not finite: 1"
        ]
        cost = page.locator("figure", has_text="cost")
        assert len(cost.locator("polyline").get_attribute("points").split()) == 5
        for width in (1280, 400):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        assert dark == (scheme == "dark")
        run(len(LINES), locked=False)
        page.get_by_text("The run has ended; this page no longer changes.").wait_for()
        assert page.locator("#state").inner_text() == "finished"
        assert page.locator("figure", has_text="RA, test").locator("b").inner_text() == "64.99 %"
        context.close()
    assert errors == [] and all(url.startswith((server.address, "data:")) for _, url in requests)
    assert [kind for kind, _ in requests].count("document") == 1
