"""Certificates where the exact radius is known, their coverage, and the file that stores them."""

import csv
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, norm
from torch import nn

from hpcdat.config.job_file import read_job
from hpcdat.data.images import Images
from hpcdat.errors import InputError, Stopped
from hpcdat.evaluation.certification.certificates import Certified, Counts
from hpcdat.evaluation.certification.certifier import certify_images
from hpcdat.evaluation.certification.clopper_pearson import certified_radius, largest_radius, lower_bound
from hpcdat.evaluation.certification.smoothed_classifier import SmoothedClassifier
from hpcdat.evaluation.image_batches import ImageBatches
from hpcdat.evaluation.outcome_store import OutcomeStore
from hpcdat.report.certificates import read_certificates
from hpcdat.report.certified import certified_table, rows_beside, with_certified, write_certified
from hpcdat.report.papers import TABLES
from hpcdat.report.papers.dat import stated_accuracies
from tests.conftest import DEMO, Never
from tests.evaluation.conftest import execution

ERROR = 1e-6
"""Probability that a test of random numbers would fail by chance if they were drawn again."""


class Linear(nn.Module):
    """Class 1 where w x + b > 0; the exact radius of its smoothed classifier is |w x + b| / ||w||."""

    def __init__(self, pixels=4, bias=-0.3):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.randn(pixels, generator=generator))
        self.bias = bias

    def forward(self, x):
        score = x.flatten(1) @ self.w + self.bias
        return torch.stack([torch.zeros_like(score), score], 1)

    def margin(self, x):
        return ((x.flatten() @ self.w + self.bias) / self.w.norm()).item()

    def at(self, margin):
        """An image so far from the boundary."""
        x = torch.full((4,), 0.5)
        x += (margin - self.margin(x)) * (self.w / self.w.norm()).detach()
        return x.view(1, 2, 2)


def smoothed(model, sigma=0.25, batch_size=1000, seed=0):
    return SmoothedClassifier(model, sigma, classes=2, batch_size=batch_size, seed=seed)


@given(st.integers(1, 10**5), st.floats(0, 1), st.floats(1e-6, 0.5))
def test_the_bound_is_clopper_and_pearsons(n, share, alpha):
    """At the bound, as many successes or more have probability alpha: the definition, and SciPy's own."""
    count = round(share * n)
    bound = float(lower_bound(count, n, alpha))
    if count == 0:
        assert bound == 0
        return
    assert 0 < bound < 1 and bound < count / n
    assert binom.sf(count - 1, n, bound) == pytest.approx(alpha, rel=1e-6)
    interval = binomtest(count, n, alternative="greater").proportion_ci(1 - alpha, method="exact")
    assert bound == pytest.approx(interval.low, rel=1e-6)
    if count == n:
        assert bound == pytest.approx(alpha ** (1 / n), rel=1e-9)


@given(
    st.integers(1, 300),
    st.floats(0.001, 0.999),
    st.sampled_from([0.3, 0.05, 0.001]),
)
def test_the_bound_holds_with_at_least_the_probability_promised(n, p, alpha):
    """All counts summed up, not sampled."""
    counts = np.arange(n + 1)
    assert binom.pmf(counts, n, p)[lower_bound(counts, n, alpha) > p].sum() <= alpha * (1 + 1e-9)


@pytest.mark.parametrize("margin", [0.01, 0.1, 0.4])
def test_the_radius_of_a_linear_classifier_converges_to_the_exact_one(margin):
    """With the counts to be expected, from below, and the gap closes as n^-1/2."""
    sigma = 0.25
    p = norm.cdf(margin / sigma)
    n = np.array([10**4, 10**6, 10**8, 10**10])
    radii = np.array([certified_radius(math.floor(k * p), int(k), 0.001, sigma) for k in n])
    # No more than four standard deviations of the estimate: 3.1 of alpha = 0.001, the rest rounding.
    deviation = sigma / norm.pdf(norm.ppf(p)) * np.sqrt(p * (1 - p) / n)
    gaps = margin - radii
    assert np.isnan(radii[0]) or gaps[0] < 4 * deviation[0]
    assert (gaps[1:] > 0).all() and (gaps[1:] < 4 * deviation[1:]).all()
    assert gaps[-1] < 2e-4 * sigma


@pytest.mark.parametrize("margin", [0.3, -0.2])
def test_sampling_around_a_linear_classifier_finds_its_radius(margin):
    model, n, sigma = Linear(), 100_000, 0.25
    top, count = smoothed(model).certify(model.at(margin), n0=100, n=n, image=3)
    assert top == (margin > 0)
    p = norm.cdf(abs(margin) / sigma)
    # Two-sided, each tail with half of the error.
    assert binom.ppf(ERROR / 2, n, p) <= count <= binom.isf(ERROR / 2, n, p)
    radius = float(certified_radius(count, n, 0.001, sigma))
    assert abs(margin) - 0.02 < radius < abs(margin) + 0.005


def test_certificates_cover_the_exact_radius_with_the_promised_probability():
    """1,500 certificates of the same image with alpha = 0.1: how many exceed its exact radius."""
    model, sigma, margin, n, alpha, runs = Linear(), 0.25, 0.15, 60, 0.1, 1500
    x = model.at(margin)
    found = [smoothed(model, sigma).certify(x, n0=12, n=n, image=run) for run in range(runs)]
    radii = certified_radius([count for _, count in found], n, alpha, sigma)
    true = norm.cdf(margin / sigma)
    # Where class 1 was chosen it must not go beyond its radius; nothing can be certified of class 0.
    wrong = sum(r > margin if top == 1 else not np.isnan(r) for (top, _), r in zip(found, radii, strict=True))
    assert wrong <= binom.isf(ERROR, runs, alpha)
    # The share of wrong certificates is the exact one, which is computed from all counts.
    counts = np.arange(n + 1)
    beyond = binom.pmf(counts, n, true)[lower_bound(counts, n, alpha) > true].sum()
    chosen = binom.sf(6, 12, true)
    share = chosen * beyond
    assert 0.03 < share < alpha
    assert binom.ppf(ERROR, runs, share) <= wrong <= binom.isf(ERROR, runs, share + 0.01)


def test_selection_and_estimate_use_different_noise():
    """Otherwise the estimate for the chosen class would be biased; here its mean must be 1/2."""
    model, n, runs = Linear(), 11, 800
    x = model.at(0.0)
    counts = [smoothed(model).certify(x, n0=n, n=n, image=run)[1] for run in range(runs)]
    low, high = binom.ppf(ERROR, n * runs, 0.5), binom.isf(ERROR, n * runs, 0.5)
    assert low <= sum(counts) <= high


@given(st.integers(2, 10**6), st.floats(1e-6, 0.2), st.floats(0.01, 2))
def test_no_radius_is_larger_than_the_formula_says(n, alpha, sigma):
    largest = largest_radius(n, alpha, sigma)
    if alpha ** (1 / n) < 0.5:
        assert np.isnan(largest)
        return
    assert largest == pytest.approx(sigma * norm.ppf(alpha ** (1 / n)), rel=1e-6, abs=1e-9)
    radii = certified_radius(np.linspace(0, n, 50).astype(int), n, alpha, sigma)
    assert np.nanmax(radii) == largest


def test_table_2_has_zeros_where_no_radius_reaches():
    """Of 0.12 none reaches 0.5 with n = 100,000; that some reach 0.4 rules out n = 10,000."""
    assert largest_radius(100_000, 0.001, 0.12) == pytest.approx(0.457, abs=5e-4)
    assert largest_radius(10_000, 0.001, 0.12) == pytest.approx(0.384, abs=5e-4)
    assert largest_radius(100_000, 0.001, 0.25) > 0.5
    for row in TABLES["dat-2"].rows:
        largest = largest_radius(100_000, 0.001, row.work["smoothing.sigma"])
        assert all((value > 0) == (radius < largest) for radius, value in stated_accuracies(row).items())


def test_it_abstains_where_a_half_is_not_excluded():
    n, alpha = 1000, 0.001
    limit = next(k for k in range(n + 1) if lower_bound(k, n, alpha) >= 0.5)
    assert binom.sf(limit - 1, n, 0.5) <= alpha < binom.sf(limit - 2, n, 0.5)
    radii = certified_radius(np.arange(n + 1), n, alpha, 1.0)
    assert np.isnan(radii[:limit]).all() and (radii[limit:] >= 0).all()
    assert (np.diff(radii[limit:]) > 0).all()


def test_accuracy_counts_what_is_right_and_certified_so_far():
    """Of five images one is wrong, and one is abstained from."""
    counts = [Counts(0, 1, 1, 100), Counts(1, 1, 0, 100), Counts(2, 1, 1, 90), Counts(3, 0, 0, 50)]
    counts.append(Counts(4, 0, 0, 80))
    one = Certified(0.5, 10, 100, 0.01, counts)
    radii = certified_radius([100, 90, 80], 100, 0.01, 0.5)
    assert one.abstained == 1
    assert one.accuracy(0) == 3 / 5
    assert [one.accuracy(r) for r in radii] == [1 / 5, 2 / 5, 3 / 5]
    assert one.accuracy(radii[0] * 1.001) == 0
    assert one.average_radius == pytest.approx(radii.sum() / 5)


def test_noise_is_a_function_of_seed_image_and_batch():
    model = Linear()
    x = model.at(0.1)
    one = smoothed(model).certify(x, n0=10, n=2500, image=7)
    torch.randn(3)
    smoothed(model).certify(x, n0=3, n=70, image=8)
    assert smoothed(model).certify(x, n0=10, n=2500, image=7) == one
    others = {smoothed(model).certify(x, n0=10, n=2500, image=image)[1] for image in range(20)}
    others |= {smoothed(model, seed=seed).certify(x, n0=10, n=2500, image=7)[1] for seed in range(1, 20)}
    assert len(others) > 20
    # Exactly n samples, whether or not they fill batches.
    assert smoothed(model).sample(x, 2500, "estimate", 7).sum() == 2500
    assert smoothed(model).sample(x, 1000, "estimate", 7).sum() == 1000


class Points:
    """A loader of images at given margins from a linear classifier; position 5 cannot be read."""

    def __init__(self, model, margins):
        self.x = torch.stack([model.at(margin) for margin in margins])
        self.y = torch.tensor([int(margin > 0) for margin in margins])
        self.read_images = []

    def read(self, batches, seed):
        for indices in batches:
            self.read_images += indices.tolist()
            readable = [i for i in indices.tolist() if i != 5]
            yield self.x[readable], self.y[readable]


PIXELS = np.zeros((12, 2, 2, 1), np.uint8)
IMAGES = Images([f"point {i}" for i in range(12)], [int(i > 6) for i in range(12)], ["0", "1"], PIXELS)
SETTINGS = ["n0=20", "n=300", "alpha=0.01", "batch_size=128"]


def certify_points(folder, *, points=Points, stop=None, every=1):
    """The certificates, and the images that were read."""
    model = Linear().eval()
    job = read_job(DEMO, [f"certification.{setting}" for setting in SETTINGS])
    images = ImageBatches(IMAGES, job.data, 1, torch.device("cpu"), every=every)
    images.loader = points(model, [0.02 * (i - 6) for i in range(12)])
    certified = certify_images(0.25, images, model, job, execution(stop), folder)
    return certified, images.loader.read_images


def counts_file(folder):
    (file,) = folder.glob("counts-0.25-*.jsonl")
    return file


def test_a_kill_leaves_what_the_same_command_completes_to_the_same_bytes(tmp_path):
    """Two workers were killed while they appended to their parts."""
    whole, read = certify_points(tmp_path)
    assert read == list(range(12)) and [c.image for c in whole.counts] == [*range(5), *range(6, 12)]
    file = counts_file(tmp_path)
    contents = file.read_bytes()
    again, read = certify_points(tmp_path)
    assert again == whole and read == [5] and file.read_bytes() == contents
    key, *lines = contents.splitlines(keepends=True)
    for size in range(0, len(b"".join(lines[:8])), 97):
        file.write_bytes(key + b"".join(lines[8:]))
        for rank in (0, 1):
            Path(f"{file}.part-{rank}").write_bytes(b"".join(lines[rank:8:2])[: size // 2])
        resumed, read = certify_points(tmp_path)
        assert resumed == whole and file.read_bytes() == contents
        assert list(tmp_path.iterdir()) == [file]
        done = sum(b"".join(lines[rank:8:2])[: size // 2].count(b"\n") for rank in (0, 1))
        assert len(read) == 1 + 8 - done


def test_a_stop_takes_effect_within_an_image_and_preserves_completed_ones(tmp_path):
    class Soon(Never):
        pass

    stop = Soon()

    class Slow(Points):
        """A stop is requested during image 3, whose samples take half a second each."""

        def __init__(self, model, margins):
            super().__init__(model, margins)
            model.register_forward_pre_hook(lambda *_: time.sleep(0.5 if stop.requested else 0))

        def read(self, batches, seed):
            for batch, images in zip(batches, super().read(batches, seed), strict=True):
                stop.requested = 3 in batch
                yield images

    with pytest.raises(Stopped, match=r"rerun the same command to certify at sigma 0\.25"):
        certify_points(tmp_path, points=Slow, stop=stop)
    _, read = certify_points(tmp_path)
    assert read == [3, 4, 5, *range(6, 12)]


def test_images_left_out_before_are_added(tmp_path):
    """The first of every four, then of every two; the certificates are the same as without the first run."""
    certify_points(tmp_path / "one", every=4)
    some, read = certify_points(tmp_path / "one", every=2)
    assert read == [2, 6, 10] and some == certify_points(tmp_path / "other", every=2)[0]
    # Counts that are not requested are preserved.
    certify_points(tmp_path / "one", every=3)
    _, read = certify_points(tmp_path / "one", every=2)
    assert read == []


@pytest.mark.parametrize(
    "was, is_now",
    [
        ('"top"', '"tip"'),
        ('"count": ', '"count": 9'),
        ('"count": ', '"count": 0.'),
        ('"image": 0', '"image": 12'),
        ('"label": 0', '"label": 1'),
        ('"top": 0', '"top": 1'),
        ('"top": ', '"top": -1'),
        ('"sigma": 0.25', '"sigma": 0.12'),
        ('"image"', "\x80"),
    ],
)
def test_damaged_counts_are_reported_and_sampled_again(tmp_path, was, is_now):
    whole, _ = certify_points(tmp_path, every=4)
    file = counts_file(tmp_path)
    contents = file.read_bytes()
    damaged = contents.decode().replace(was, is_now, 1)
    assert damaged != contents.decode()
    file.write_text(damaged, encoding="latin1")
    warnings = []
    store = OutcomeStore(tmp_path, "counts-0.25", _key_of(contents))
    assert len(store.load(warnings.append)) < 3 and "damaged" in warnings[0]
    file.write_text(damaged, encoding="latin1")
    again, read = certify_points(tmp_path, every=4)
    assert again == whole and file.read_bytes() == contents
    assert set(read) <= {0, 4, 8} and 0 in read


def _key_of(contents):
    key = json.loads(contents.splitlines()[0])
    return {name: value for name, value in key.items() if name != "format"}


def test_the_noise_is_that_of_training_unless_the_job_says_otherwise():
    assert read_job(DEMO).certification.sigma == [0.12, 0.25]
    assert read_job(DEMO, ["smoothing.sigma=0.5"]).certification.sigma == [0.5]
    assert read_job(DEMO, ["smoothing.sigma=0.5", "certification.sigma=[0.1]"]).certification.sigma == [0.1]


def test_what_is_written_is_what_is_printed(tmp_path):
    counts = [Counts(0, 1, 1, 100_000), Counts(1, 1, 1, 99_000), Counts(2, 0, 1, 100_000), Counts(3, 0, 0, 5)]
    certified = [Certified(sigma, 100, 100_000, 0.001, counts) for sigma in (0.12, 0.25)]
    paper = rows_beside(read_job(DEMO, ["reproduces=[dat-2/dat-25, dat-1/at]"]))
    write_certified(certified, paper, tmp_path)
    table = (tmp_path / "certified.md").read_text()
    assert table == certified_table(certified, paper) + "\n"
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:5]]
    half, quarter = "50.0 [15.0, 85.0]", "25.0 [4.6, 69.9]"
    assert cells[0][3:] == [
        *("100,000", "0.001", *[half] * 5),
        *(quarter, quarter, "0.0 [0.0, 49.0]", "0.183", "1"),
    ]
    assert cells[1][:3] == ["CA (%)", "0.25", "4"] and cells[1][12] == half
    assert cells[2][0] == "paper, DAT (N = 20)" and cells[2][5:7] == ["", "76.4"]
    assert "0.457 at sigma 0.12 (n 100,000, alpha 0.001)" in table and "n0 = 100 samples" in table
    summary = json.loads((tmp_path / "certified.json").read_text())
    assert [one["accuracy"]["0.5"] for one in summary] == [0.0, 0.5]
    rows = list(csv.DictReader((tmp_path / "certified.csv").open()))
    assert len(rows) == 8 and rows[3]["radius"] == "abstains"
    assert float(rows[0]["radius"]) == pytest.approx(0.457375, abs=1e-6)
    assert read_certificates(tmp_path) == certified
    plot = (tmp_path / "certified.svg").read_text()
    assert plot.startswith("<svg") and "sigma 0.25" in plot


def test_certificates_with_other_settings_replace_none_and_the_jobs_own_are_first(tmp_path):
    counts = [Counts(image, 0, 0, 100) for image in range(3)]

    def certified(sigma, images, *changed, weights="a"):
        return Certified(sigma, 10, 100, 0.01, counts[:images], changed, weights)

    own, few = certified(0.25, 3), certified(0.25, 1, "certification.every: 3")
    other, early = certified(0.5, 3), certified(0.12, 3, weights="before")
    found = with_certified(with_certified([early, few], [own]), [other])
    assert found == [own, other, few]
    assert with_certified(found, [certified(0.25, 2)]) == [other, certified(0.25, 2), few]
    write_certified(found, [], tmp_path)
    assert read_certificates(tmp_path) == found
    table = (tmp_path / "certified.md").read_text()
    assert "CA (%); certification.every: 3" in table
    assert "sigma 0.25; certification.every: 3" in (tmp_path / "certified.svg").read_text()


def test_a_row_that_the_paper_does_not_have_is_refused_before_anything_is_sampled():
    with pytest.raises(InputError, match="dat-2/dat-50 is no row of Table 2; they are dat-2/baseline-12"):
        rows_beside(read_job(DEMO, ["reproduces=[dat-2/dat-50]"]))
