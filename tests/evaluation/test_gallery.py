"""The page of images before and after the attack agrees with the evaluation's outcomes."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from hpcdat.commands import evaluate as evaluate_command
from hpcdat.evaluation.gallery import Shown, ShownBatch, choose
from hpcdat.evaluation.outcomes import Outcomes
from hpcdat.report.gallery import LARGEST_SIDE, gallery_page
from tests.conftest import run_here


def outcomes(*texts):
    """Of batches, a letter an image: Broken, Robust, Wrong."""
    return {
        number: Outcomes(
            {"correct": np.array([c != "W" for c in text]), "robust": np.array([c == "R" for c in text])}
        )
        for number, text in enumerate(texts)
    }


@pytest.mark.parametrize(
    "texts, count, chosen",
    [
        (("WBRRB", "BBRR"), 4, {0: [1, 2, 3, 4]}),
        (("WBRRB", "BBRR"), 5, {0: [1, 2, 3, 4], 1: [0]}),
        (("RRRRR", "RB"), 4, {0: [0, 1, 2], 1: [1]}),
        (("BBBB",), 3, {0: [0, 1, 2]}),
        (("RB",), 10, {0: [0, 1]}),
        (("BBBR", "W"), 4, {0: [0, 1, 2, 3]}),
        (("WW",), 3, {}),
    ],
)
def test_half_of_the_images_are_broken_if_there_are_so_many(texts, count, chosen):
    assert choose(outcomes(*texts), count) == chosen


@pytest.fixture
def recorded(monkeypatch):
    """What the page is made of."""
    calls, original = [], evaluate_command.gallery_page

    def page(shown, *arguments):
        calls.append(shown)
        return original(shown, *arguments)

    monkeypatch.setattr(evaluate_command, "gallery_page", page)
    return calls


def stored_outcomes(run_dir):
    """Verdicts of all images, in order, of the one evaluation in the folder."""
    (file,) = (run_dir / "evaluation").glob("accuracy*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    batches = [line["outcome"]["columns"] for line in sorted(lines, key=lambda line: line["batch"])]
    return ["".join(batch[column] for batch in batches) for column in ("correct", "robust")]


@pytest.mark.parametrize("restarts", [1, 2])
def test_the_images_are_those_of_the_evaluation_and_so_are_the_verdicts(restarts, run_dir, recorded):
    arguments = ["evaluation.steps=4", f"evaluation.restarts={restarts}", "evaluation.batch_size=100"]
    done = run_here("evaluate", run_dir, *arguments, "--gallery", 10)
    assert done.returncode == 0, done.stderr
    file = run_dir / "evaluation" / "gallery.html"
    assert f"written: {file}\n" in done.stdout
    ((*shown,),) = recorded
    correct, robust = stored_outcomes(run_dir)
    broken = [k for k in range(len(correct)) if correct[k] == "1" and robust[k] == "0"][:5]
    unbroken = [k for k in range(len(correct)) if robust[k] == "1"][:5]
    assert [one.robust for one in shown] == [k in unbroken for k in sorted(broken + unbroken)]
    for one in shown:
        assert one.probabilities_before.argmax() == one.label, "only images that are right without attack"
        assert (one.probabilities_after.argmax() == one.label) == one.robust
        assert 0 < np.abs(one.after - one.before).max() <= 0.2 + 1e-6, "in the ball of the job"
        assert one.probabilities_before.sum() == pytest.approx(1, abs=1e-5)
    page = file.read_text()
    assert "PGD-4" in page and "eps 0.2" in page and "10 images, of which the attack breaks 5" in page
    assert len(page) < 2e6 and not re.search(r'(src|href)="(?!data:)', page)
    first = f"{100 * shown[0].probabilities_after.max():.1f} %"
    assert first in page


def image(size, *, channels=3, robust=False):
    generator = np.random.default_rng(0)
    before = generator.uniform(0.1, 0.9, (channels, size, size)).astype(np.float32)
    after = before + np.float32(8 / 255) * generator.choice([-1, 1], before.shape).astype(np.float32)
    return Shown(1, before, after, *np.float32([[0.25, 0.75], [0.625, 0.375]]), robust=robust)


@pytest.mark.parametrize("channels, size", [(1, 8), (3, 32), (3, 224)])
def test_a_page_shows_perturbations_magnified_and_large_images_smaller(channels, size):
    shown = [image(size, channels=channels)] * 50
    page = gallery_page(shown, ["cat", "<dog>"], "PGD-10", "network")
    assert "magnified 15.9 times" in page and "<dog>" not in page
    assert "before: &lt;dog&gt;, 75.0 %" in page and "after: cat, 62.5 %" in page
    assert (size <= 32) <= (len(page) < 2e6)
    assert ("made smaller for this page" in page) == (size > LARGEST_SIDE)
    before, perturbation, _ = re.findall(r"base64,([^\"]+)", page)[:3]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(before))))
    assert pixels.shape[0] == min(size, LARGEST_SIDE)
    if size <= 32:
        expected = np.round(255 * shown[0].before).transpose(1, 2, 0).squeeze()
        assert (pixels == expected).all()
        ends = set(np.unique(np.asarray(Image.open(io.BytesIO(base64.b64decode(perturbation))))).tolist())
        assert ends == {0, 255}


def test_a_batch_survives_json():
    batch = ShownBatch([image(8), image(8, robust=True)])
    back = ShownBatch.from_json(json.loads(json.dumps(batch.to_json())))
    for one, other in zip(batch.images, back.images, strict=True):
        assert (one.label, one.robust) == (other.label, other.robust)
        for key in ("before", "after", "probabilities_before", "probabilities_after"):
            assert (getattr(one, key) == getattr(other, key)).all()
