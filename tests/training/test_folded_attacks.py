"""Training attacks the folded network: the same steps, but for rounding, and old runs stay what they were."""

import pytest
import torch
import yaml

from hpcdat.commands.train import train
from hpcdat.config.job_file import read_job
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import InputError
from hpcdat.storage.run_folder import RunFolder
from tests.conftest import DEMO, Never
from tests.distributed.programs.training import in_float64
from tests.training.network_steps import algorithm_of, step_on

PLAIN = "attack.fold_batch_norm=false"


def job_of(*settings):
    return read_job(DEMO, ["method=dat-pgd", "attack.steps=3", "attack.eps=0.1", *settings])


@pytest.mark.parametrize(
    "settings",
    [
        ("virtual_workers=2",),
        ("objective.regulariser=trades",),
        ("smoothing.sigma=0.1",),
        ("method=disadv", "attack.steps=1", "attack.batch_norm=eval"),
        ("model.name=preact-resnet18", "model.width=0.1"),
    ],
    ids=lambda settings: settings[0],
)
def test_steps_are_those_of_the_network_as_it_is(settings):
    """Three of them, so that weights and running statistics change."""
    with in_float64():
        folded, plain = (
            step_on(job_of(*settings, *more), SingleProcess(), steps=3) for more in ((), (PLAIN,))
        )
    for name, tensor in folded.items():
        torch.testing.assert_close(tensor, plain[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("settings", "folds"),
    [
        ((), True),
        ((PLAIN,), False),
        (("attack.batch_norm=train",), False),
        (("method=conadv", "attack.steps=1"), False),
        (("method=plain",), False),
        (("model.compiled=true",), False),
    ],
)
def test_only_attacks_with_running_statistics_fold(settings, folds):
    folding = algorithm_of(job_of(*settings), SingleProcess()).folding
    assert (folding.network is not None, folding.remark) == (folds, "")


def quick(run_dir, *settings):
    few = ["epochs=1", "data.train_images=100", "data.test_images=20", "data.loader=torchvision"]
    return job_of(f"run_dir={run_dir}", *few, *settings)


def test_a_network_that_cannot_be_folded_is_told_once(tmp_path, capsys):
    job = quick(tmp_path / "run", "epochs=2", "model.name=tests.own_networks:Recording")
    train(job, SingleProcess(), Never())
    told = [line for line in capsys.readouterr().out.splitlines() if "without folding" in line]
    assert len(told) == 1 and told[0].endswith("a pass changes the attribute seen"), told


def test_a_run_from_before_the_setting_resumes_without_folding_only(tmp_path):
    folder, job = RunFolder(tmp_path / "run"), quick(tmp_path / "run")
    folder.begin(job, {}, overwrite=False)
    folder.checkpoints.folder.joinpath("some").touch()
    folder.log(event="epoch")
    assert folder.begin(job, {}, overwrite=False)
    before = yaml.safe_load(folder.job_file.read_text())
    assert before["attack"].pop("fold_batch_norm") is True
    folder.job_file.write_text(yaml.safe_dump(before))
    with pytest.raises(InputError, match=r"other settings \(attack.fold_batch_norm: False -> True"):
        folder.begin(job, {}, overwrite=False)
    assert folder.begin(quick(tmp_path / "run", PLAIN), {}, overwrite=False)
