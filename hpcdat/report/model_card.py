"""The model card of an exported network: Markdown, with metadata in front for the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import jinja2
import yaml
from tabulate import tabulate

from hpcdat import __version__
from hpcdat.config.averaging import Averaging
from hpcdat.config.job import Job
from hpcdat.config.sections import by_name
from hpcdat.evaluation.attack_text import in_pixel_units
from hpcdat.evaluation.intervals import wilson
from hpcdat.report.loading_code import construction, loading_code
from hpcdat.report.result_table import accuracy_notes, result_rows
from hpcdat.storage.evaluated import Evaluated
from hpcdat.storage.run_folder import Result, RunFolder

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("hpcdat.report", "."),
    autoescape=jinja2.select_autoescape(["html", "html.j2"]),
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
)
"""Loads the templates in this folder (model_card.md.j2); Markdown is not escaped."""
COLUMNS = ("Epochs", "TA (%)", "RA (%)", "AA (%)", "Fast bound (%)", "Attack", "Images")
"""Columns of the result table that a card has."""


@dataclass(frozen=True)
class Exported:
    """A network as it was exported.

    Attributes:
        file: where it is written.
        classes: class names, in the order of the logits.
        weights: hash of the weights that were evaluated.
        averaged: whether these are averaged weights.
        takes_pixels: whether its input is pixels in [0, 1]; otherwise they are normalised first.
        first_convolution: see :func:`~hpcdat.report.loading_code.loading_code`.
        license: identifier of the licence; None if not given.
    """

    file: Path
    classes: list[str]
    weights: str
    averaged: bool = False
    takes_pixels: bool = False
    first_convolution: str | None = None
    license: str | None = None


def model_card(folder: RunFolder, job: Job, exported: Exported) -> str:
    """The card of a network of a finished run.

    Args:
        folder: of the run.
        job: resolved.
        exported: the network.

    Returns:
        Markdown, without names of hosts, and of folders in settings only the last name.

    Raises:
        RunError: the run has no result, or its records cannot be read.
    """
    whole = folder.read_result()
    result = _of_weights(whole, exported.weights)
    is_onnx = exported.file.suffix == ".onnx"
    return TEMPLATES.get_template("model_card.md.j2").render(
        metadata=_yaml(_metadata(job, exported, result)),
        name=exported.file.stem,
        network=job.model.name,
        classes=exported.classes,
        data=_data(job),
        method=job.method,
        hpcdat=__version__,
        averaged=exported.averaged,
        table=_accuracies(exported.file, result) if result else "",
        notes=accuracy_notes([result]) if result else [],
        needs="onnxruntime" if is_onnx else construction(job, len(exported.classes)).needs,
        code=loading_code(job, len(exported.classes), exported.file.name, exported.first_convolution),
        channels=job.data.channels,
        size=job.data.image_size,
        input="pixels in [0, 1]"
        if exported.takes_pixels
        else "normalised: (pixels - mean) / std of pixels in [0, 1]",
        preprocessing=_preprocessing(job),
        mean=job.model.mean,
        std=job.model.std,
        recipe=tabulate(_recipe(folder, job, whole), ["", ""], tablefmt="github", disable_numparse=True),
        settings=_yaml(_settings(job)),
        versions=tabulate(_versions(folder), ["", ""], tablefmt="github", disable_numparse=True),
        date=f"{datetime.now(timezone.utc):%Y-%m-%d}",
    )


def _of_weights(result: Result, weights: str) -> Result | None:
    """The evaluations of these weights; None if there are none."""
    measured = [one for one in (result, *result.others) if one.weights == weights]
    if not measured:
        return None
    first = {field.name: getattr(measured[0], field.name) for field in fields(Evaluated)}
    return replace(result, **first, others=tuple(measured[1:]))


def _accuracies(file: Path, result: Result) -> str:
    header, rows = result_rows({file: result})
    columns = [header.index(name) for name in COLUMNS if name in header]
    cells = [[row[column] for column in columns] for row in rows]
    return tabulate(cells, [header[column] for column in columns], tablefmt="github", disable_numparse=True)


def _metadata(job: Job, exported: Exported, result: Result | None) -> dict[str, Any]:
    formats = {".onnx": "onnx", ".safetensors": "safetensors"}
    tags = ["image-classification", "adversarial-robustness", "hpcdat", job.method, job.attack.norm]
    if exported.file.suffix in formats:
        tags.append(formats[exported.file.suffix])
    metadata: dict[str, Any] = {"license": exported.license} if exported.license else {}
    metadata |= {"pipeline_tag": "image-classification", "tags": tags}
    if result:
        data = {"type": job.data.source, "name": _data(job), "split": "test"}
        results = [
            {"task": {"type": "image-classification"}, "dataset": data, "metrics": _metrics(one)}
            for one in (result, *result.others)
        ]
        metadata["model-index"] = [{"name": exported.file.stem, "results": results}]
    return metadata


def _metrics(one: Evaluated) -> list[dict[str, Any]]:
    """The accuracies of an evaluation as the hub's metrics, in per cent."""
    attack = one.conditions
    measured = [
        ("accuracy", "Clean accuracy (TA)", one.ta, one.images),
        ("robust_accuracy", f"Robust accuracy (RA): {attack}", one.ra, one.images),
    ]
    if one.aa is not None and one.aa_images:
        version = one.aa_version or "AutoAttack's standard version"
        name = f"Robust accuracy (AA): {version}, in the ball of {attack}"
        measured.append(("robust_accuracy", name, one.aa, one.aa_images))
    if one.fast_bound is not None:
        name = f"Robust accuracy (fast bound): margin attack, in the ball of {attack}"
        measured.append(("robust_accuracy", name, one.fast_bound, one.images))
    return [
        {
            "type": kind,
            "name": name,
            "value": round(100 * share, 2),
            "args": {"images": images, "interval": [round(100 * end, 2) for end in wilson(share, images)]},
        }
        for kind, name, share, images in measured
    ]


def _recipe(folder: RunFolder, job: Job, result: Result) -> list[tuple[str, str]]:
    attack, optimizer, schedule = job.attack, job.optimizer, job.schedule
    ball = f"{attack.norm}, eps {in_pixel_units(attack.eps)}"
    decays = f", decays by {schedule.decay_factor:g} after epochs {schedule.decay_epochs}"
    start = job.model.pretrained
    oracle = attack.name if attack.name != "pgd" else job.oracle
    smoothing = f"sigma {job.smoothing.sigma:g}, {job.smoothing.copies} copies of each image"
    return [
        ("method", job.method),
        (
            "attack in training",
            "none" if job.oracle == "none" else f"{oracle}, {_steps(attack.steps)}, {ball}",
        ),
        *([("objective", f"TRADES, beta {job.objective.beta:g}")] if job.objective.beta is not None else []),
        *([("noise in training", smoothing)] if job.smoothing.sigma else []),
        ("optimiser", f"{optimizer.name}, lr {optimizer.lr:g}, weight decay {optimizer.weight_decay:g}"),
        ("schedule", schedule.name + (decays if schedule.decay_epochs else "")),
        ("epochs", f"{result.epoch} of {job.total_epochs}"),
        *([("averaged weights", _averaging(job.averaging))] if job.averaging.is_on else []),
        ("workers", f"{result.p} x {result.q} (nodes x workers), batch {result.batches} x {result.batch}"),
        ("exchange of gradients", result.exchange),
        ("seed", str(job.seed)),
        (
            "data",
            f"{_data(job)}, {max(e['images'] for e in folder.metrics('epoch')):,} images per epoch",
        ),
        ("augmentation", _augmentation(job)),
        ("initial weights", start.name if start else "random"),
        ("precision", job.model.precision),
    ]


def _steps(count: int | None) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def _augmentation(job: Job) -> str:
    every = (job.data.augmentation, job.data.policy, job.data.mixing)
    return ", ".join(each for each in every if each != "none") or "none"


def _averaging(averaging: Averaging) -> str:
    return f"from epoch {averaging.swa_from}, SWA" if averaging.ema is None else f"EMA, {averaging.ema:g}"


def _settings(job: Job) -> dict[str, Any]:
    """The settings that the training depends on, by dotted name; of files only their names."""
    return {
        key: _without_folders(value) for key, (value, may_change) in by_name(job).items() if not may_change
    }


def _without_folders(value: Any) -> Any:
    """A setting with only the last names of the paths in it."""
    if isinstance(value, dict):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_folders(inner) for inner in value]
    return Path(value).name if isinstance(value, Path) or str(value).startswith("/") else value


def _versions(folder: RunFolder) -> list[tuple[str, str]]:
    """Versions and devices of the training, without names of hosts."""
    environment = folder.environment()
    packages = environment.get("packages") or {}
    workers = environment.get("workers") or []
    devices = dict.fromkeys(worker.get("device", "") for worker in workers)
    return [
        ("python", str(environment.get("python", "unknown"))),
        *((name, str(version)) for name, version in packages.items()),
        ("commit of hpcdat", str(environment.get("git_commit") or "unknown")),
        ("devices", f"{len(workers)} x {', '.join(devices)}"),
    ]


def _data(job: Job) -> str:
    """The name of the data: their source, of folders, shards or the Hugging Face hub its name there."""
    data = job.data
    named = data.has_folders or data.source == "huggingface"
    return data.hub or (data.root.name if named and data.root else data.source)


def _preprocessing(job: Job) -> str:
    """How test images were brought to size."""
    if job.data.loader == "device":
        return f"images were resized to {job.data.image_size} x {job.data.image_size} pixels"
    return f"images were resized and cropped at their centre to {job.data.image_size} pixels"


def _yaml(value: dict[str, Any]) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=1000)
