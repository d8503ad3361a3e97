"""Weights to start from: those of another run or of a torchvision file, except a head of other classes.

DAT, Sec. 6.2 and Figure 4: pre-training on one set of images, fine-tuning on another.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from hpcdat.errors import InputError, first_few, first_line
from hpcdat.storage.checkpoint_format import load_checkpoint
from hpcdat.storage.run_folder import RunFolder

HEADS = ("fc", "classifier")
"""Names of the last layer in the networks of this package and of torchvision."""


def load_pretrained(model: nn.Module, path: Path, classes: list[str]) -> list[str]:
    """Give a model the weights of a file.

    Args:
        model: normalisation and network, as :func:`~hpcdat.models.build_model` makes them. Its own mean and
            standard deviation of the pixels stay.
        path: a checkpoint of a run, a run's folder, for the weights of its result, or a state dictionary of
            the model without its normalisation layer (.pth).
        classes: of the model. A run's head has other classes if a name differs, even if their number is the
            same; a file without names, if their number differs.

    Returns:
        Names of the tensors that stay as they were initialised: the head's, if it has other classes.

    Raises:
        InputError: the file cannot be read, or its tensors do not fit this model.
    """
    given, trained_on = _read_weights(path)
    # Older torchvision files do not count the batches that batch norm has seen, and nothing here does.
    own = {
        name: t
        for name, t in model.state_dict().items()
        if name.startswith("1.") and (not name.endswith(".num_batches_tracked") or _plain(name) in given)
    }
    names = {name: _plain(name) for name in own}
    missing = sorted({n for n in names.values() if n not in given})
    unknown = sorted(set(given) - set(names.values()))
    if missing or unknown:
        raise InputError(
            f"model.pretrained: {path} does not fit this model: "
            f"{_some(missing)} missing, {_some(unknown)} unknown"
        )
    head = {name for name in own if names[name].rpartition(".")[0] in HEADS}
    unlike = [name for name, t in own.items() if t.shape != given[names[name]].shape]
    fresh = [name for name in own if name in head] if trained_on not in (None, classes) else unlike
    wrong = [name for name in unlike if name not in head]
    if wrong:
        name = wrong[0]
        raise InputError(
            f"model.pretrained: {path} does not fit this model: {names[name]} is "
            f"{tuple(given[names[name]].shape)} there and {tuple(own[name].shape)} here"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            if name not in fresh:
                tensor.copy_(given[names[name]])
    return fresh


def _read_weights(path: Path) -> tuple[dict[str, Tensor], list[str] | None]:
    """The tensors of a file by their names as in :func:`_plain`, and the classes of its model, if known."""
    if path.is_dir() or path.suffix == ".pt":
        run = RunFolder(path)
        checkpoint = run.checkpoint_of_result(run.read_job([])) if path.is_dir() else load_checkpoint(path)
        weights = {
            _plain(name): t
            for name, t in checkpoint.model.items()
            if name.startswith("1.") and ".auxiliary." not in name
        }
        return weights, checkpoint.classes
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"model.pretrained: {path}: there is no such file") from None
    except Exception as error:
        raise InputError(f"model.pretrained: {path}: not a file of weights: {first_line(error)}") from None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(t, Tensor) for name, t in state.items()
    ):
        raise InputError(f"model.pretrained: {path}: expected a state dictionary: tensors by name")
    return state, None


def _plain(name: str) -> str:
    """A tensor's name without normalisation layer and split batch norm."""
    return name.removeprefix("1.").replace(".main.", ".").replace(".auxiliary.", ".")


def _some(names: list[str]) -> str:
    return first_few(names, 3) or "none"
