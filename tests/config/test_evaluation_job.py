"""Jobs that train nothing: what they need, what they refuse, and presets of leaderboards."""

import textwrap

import pytest

from hpcdat.config.evaluation_job import EvaluationJob
from hpcdat.config.job import Job
from hpcdat.config.job_file import JobError, read_evaluation_job, read_job, write_job
from tests.conftest import CHECKOUT, DEMO

CIFAR = "run_dir: runs/x\nmodel: {pretrained: w.pth}\ndata: {source: cifar10}\n"


def read(tmp_path, text, *settings):
    file = tmp_path / "job.yaml"
    file.write_text(text)
    return read_evaluation_job(file, settings)


def test_a_job_without_training_needs_no_setting_of_one_and_survives_writing(tmp_path):
    job = read(tmp_path, CIFAR, "evaluation.eps=8/255")
    assert type(job) is EvaluationJob and "method" not in write_job(job)
    assert (job.evaluation.norm, job.evaluation.eps) == ("linf", 8 / 255)
    assert job.evaluation.step_size == pytest.approx(2.5 * 8 / 255 / 20)
    assert read(tmp_path, write_job(job)) == job
    assert read(tmp_path, CIFAR).evaluation.step_size is None, "there is no radius"


def test_the_job_in_the_documentation_is_one(tmp_path):
    text = (CHECKOUT / "docs" / "how-it-works" / "given-weights.md").read_text()
    start = text.index("    # theirs.yaml\n")
    job = read(tmp_path, textwrap.dedent(text[start : text.index("\n\n", start)]))
    assert type(job) is EvaluationJob and job.takes_first_images and job.evaluation.eps == 8 / 255


def test_a_job_of_a_training_gives_its_evaluation(tmp_path):
    settings = ["attack.norm=l2", "attack.eps=0.5", "smoothing.sigma=0.5"]
    job = read_evaluation_job(DEMO, settings)
    assert isinstance(job, Job) and job == read_job(DEMO, settings)
    alone = job.without_training()
    assert (alone.evaluation.norm, alone.evaluation.eps) == ("l2", 0.5) and alone.certification.sigma == [0.5]
    assert read(tmp_path, write_job(alone)) == alone


def test_the_evaluation_of_a_training_has_a_norm_of_its_own_if_one_is_given():
    assert read_job(DEMO, ["attack.norm=l2"]).evaluation.norm == "l2"
    job = read_job(DEMO, ["evaluation.norm=l2", "evaluation.eps=3"])
    assert (job.attack.norm, job.evaluation.norm, job.evaluation.eps) == ("linf", "l2", 3)
    with pytest.raises(JobError, match=r"evaluation.eps: expected a radius in \[0, 1\]"):
        read_job(DEMO, ["evaluation.norm=linf", "attack.norm=l2", "evaluation.eps=3"])


@pytest.mark.parametrize(
    "name, source, norm, eps, images, first",
    [
        ("robustbench-linf", "cifar10", "linf", 8 / 255, 10_000, True),
        ("robustbench-linf", "cifar100", "linf", 8 / 255, 10_000, True),
        ("robustbench-l2", "cifar10", "l2", 0.5, 10_000, True),
        ("robustbench-imagenet-linf", "folder", "linf", 4 / 255, 5_000, False),
    ],
)
def test_a_preset_is_the_threat_model_of_its_leaderboard(tmp_path, name, source, norm, eps, images, first):
    preset = [f"evaluation.preset={name}", f"data.source={source}", "data.root=here"]
    job = read(tmp_path, CIFAR, *preset)
    evaluation = job.evaluation
    assert (evaluation.norm, evaluation.eps, evaluation.autoattack) == (norm, eps, images)
    assert job.takes_first_images == first
    assert read(tmp_path, write_job(job)) == job, "it does not contradict what it has filled in"
    fewer = read(tmp_path, CIFAR, *preset, "evaluation.autoattack=1000").evaluation
    assert fewer.autoattack == 1000 and fewer.eps == eps
    assert not read(tmp_path, CIFAR, *preset[1:]).takes_first_images


@pytest.mark.parametrize(
    "settings, message",
    [
        (["epochs=3"], "--set epochs=3: epochs: not allowed without method: an evaluation trains nothing"),
        (["attack.eps=0.1"], "evaluation.norm and evaluation.eps are the ball of an evaluation"),
        (["method=dat-pgd"], "epochs: missing"),
        (["evaluation.eps=2"], r"evaluation.eps: expected a radius in \[0, 1\] pixel units"),
        (["model.mean=[0.5]"], "model.mean: expected one mean and one std for each of data.channels = 3"),
        (
            ["evaluation.preset=robustbench-l2", "evaluation.eps=8/255"],
            "evaluation.eps: expected 0.5, as evaluation.preset is robustbench-l2",
        ),
        (
            ["evaluation.preset=robustbench-linf", "evaluation.eps=4/255"],
            "evaluation.eps: expected 8/255, as evaluation.preset is robustbench-linf",
        ),
        (
            ["evaluation.preset=robustbench-linf", "evaluation.norm=l2"],
            "evaluation.norm: expected linf, as",
        ),
        (
            ["evaluation.preset=robustbench-l2", "data.source=cifar100"],
            "evaluation.preset: expected none, or images of CIFAR-10: data.source is cifar100",
        ),
        (
            ["evaluation.preset=robustbench-imagenet-linf"],
            "evaluation.preset: expected none, or images of ImageNet: data.source is cifar10",
        ),
        (
            ["evaluation.preset=robustbench-linf", "data.test_images=1000"],
            "data.test_images: not allowed with evaluation.preset: robustbench-linf; evaluation.autoattack",
        ),
        (["evaluation.preset=robustbench"], "did you mean 'robustbench-l"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, settings, message):
    with pytest.raises(JobError, match=message):
        read(tmp_path, CIFAR, *settings)
