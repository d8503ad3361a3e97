"""The job of an evaluation: what measuring a model needs, without a training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from hpcdat.config.measurements import Certification, Evaluation
from hpcdat.config.paths import ExpandedPath
from hpcdat.config.presets import OTHER_SOURCES, PRESETS
from hpcdat.config.sections import LIBRARIES, MAY_CHANGE, Data, Model, Norm
from hpcdat.config.settings import Settings, not_allowed, refusal


class EvaluationJob(Settings):
    """The job of ``hpcdat evaluate``, ``certify`` and ``pseudo-label`` for given weights (model.pretrained).

    A training job (:class:`~hpcdat.config.job.Job`) has these settings and those of the training.
    """

    run_dir: Annotated[ExpandedPath, MAY_CHANGE]
    """folder of the run: settings, environment, metrics, checkpoints, result"""
    seed: int = Field(0, ge=0, lt=2**32)
    """seed of weights, order of images, augmentation and attacks"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: one GPU per worker if there are GPUs, else the CPU"""
    engine: Annotated[Literal["auto", "horovod", "torch"], MAY_CHANGE] = "auto"
    """what connects the workers: Horovod or torch.distributed; `auto`: torch.distributed under torchrun and
    where Horovod is not installed, else Horovod; see docs/how-it-works/engines.md"""
    stall_timeout: Annotated[int, MAY_CHANGE] = Field(600, ge=1)
    """seconds that a worker may keep the others waiting before all of them stop"""
    module_path: Annotated[list[ExpandedPath] | None, MAY_CHANGE] = None
    """folders in which modules of one's own (`MODULE:CALLABLE`) are looked for before Python's path; left
    out: those of the job file and of the files that it is `like`"""
    data: Data = Data()
    model: Model = Model()
    evaluation: Evaluation = Evaluation()
    certification: Annotated[Certification, MAY_CHANGE] = Certification()

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> EvaluationJob:
        self.check_measurements("linf")
        return self

    def check_measurements(self, norm: Norm) -> None:
        """Check the settings that evaluations and trainings have.

        Args:
            norm: of the evaluation's attack, unless the evaluation has its own.

        Raises:
            PydanticCustomError: some of them do not go together.
        """
        evaluation, model, channels = self.evaluation, self.model, self.data.channels
        check_radius("evaluation.eps", evaluation.norm or norm, evaluation.eps)
        if evaluation.restarts > 1 and not evaluation.random_start:
            raise refusal("evaluation.restarts", "1: without random start all of them are the same")
        if not len(model.mean) == len(model.std) == channels:
            raise refusal(
                "model.mean", f"one mean and one std for each of data.channels = {channels} channels"
            )
        if model.pretrained_averaged and model.pretrained is None:
            raise not_allowed("model.pretrained_averaged", "without model.pretrained")
        if model.width != 1 and model.name not in ("preact-resnet18", "wide-resnet28-10"):
            instead = "; see model.options" if ":" in model.name else ""
            raise refusal("model.width", f"1: it is fixed for {model.name}{instead}")
        if model.options and ":" not in model.name:
            raise not_allowed("model.options", f"with {model.name}, which has none (but model.width)")
        self._check_images()
        self._check_preset()

    def _check_images(self) -> None:
        data = self.data
        if data.has_folders and data.root is None:
            raise refusal("data.root", "a folder with train/ and test/ in it")
        self._check_hugging_face()
        if data.source in ("cifar10", "cifar100") and data.channels != 3:
            raise refusal("data.channels", f"3: {data.source} images are in colour")
        if data.test_fraction and data.source in ("digits", "cifar10", "cifar100"):
            raise not_allowed("data.test_fraction", f"with data.source: {data.source}, which has test images")
        if data.options and not data.is_user_code:
            raise not_allowed("data.options", f"with data.source: {data.source}, only with MODULE:CALLABLE")
        if data.unlabelled and (data.holds_items or data.source == "shards"):
            raise not_allowed("data.unlabelled", f"with data.source: {data.source}")
        if data.test_fraction and data.test != Data().test:
            raise not_allowed("data.test_fraction", "with data.test, whose images it would replace")
        if data.test_seed and not data.test_fraction:
            raise not_allowed("data.test_seed", "without data.test_fraction")
        if data.download and data.source not in ("cifar10", "cifar100") and data.hub is None:
            raise refusal("data.download", "false: only CIFAR and data.hub can be fetched")

    def _check_hugging_face(self) -> None:
        data = self.data
        if data.source == "huggingface":
            if data.root is None and data.hub is None:
                raise refusal("data.root", "a folder with image folders, Parquet files or a saved data set")
            return
        for key in ("hub", "image_column", "label_column"):
            if getattr(data, key) is not None:
                raise not_allowed(f"data.{key}", f"with data.source: {data.source}, only with huggingface")

    def _check_preset(self) -> None:
        name, evaluation, source = self.evaluation.preset, self.evaluation, self.data.source
        preset = PRESETS.get(name)
        if preset is None:
            return
        if source in OTHER_SOURCES and source not in preset.sources:
            raise refusal("evaluation.preset", f"none, or images of {preset.name}: data.source is {source}")
        if evaluation.norm not in (None, preset.norm):
            raise refusal("evaluation.norm", f"{preset.norm}, as evaluation.preset is {name}")
        if evaluation.eps not in (None, preset.eps):
            eps = f"{preset.eps * 255:g}/255" if preset.norm == "linf" else f"{preset.eps:g}"
            raise refusal("evaluation.eps", f"{eps}, as evaluation.preset is {name}")
        if self.data.test_images and self.takes_first_images:
            raise not_allowed(
                "data.test_images",
                f"with evaluation.preset: {name}; evaluation.autoattack takes the first images of its list",
            )

    @property
    def takes_first_images(self) -> bool:
        """Whether AutoAttack takes the first images of the data, in the order of the preset's leaderboard.

        Otherwise it takes equally many images of each class.
        """
        preset = PRESETS.get(self.evaluation.preset)
        return preset is not None and self.data.source in preset.sources

    @property
    def has_user_code(self) -> bool:
        """Whether network or data are a ``MODULE:CALLABLE`` of the user's own."""
        named = (self.model.name, self.data.source)
        return any(":" in name and name.partition(":")[0] not in LIBRARIES for name in named)

    def resolved_module_path(self, folders: Sequence[Path]) -> list[Path] | None:
        """``module_path``, left out: the given folders if there is code of the user's own."""
        return [*folders] if self.module_path is None and self.has_user_code else self.module_path

    def resolved(self, folders: Sequence[Path] = ()) -> EvaluationJob:
        """This job with every omitted setting filled in, except ``evaluation.eps``, which has no default.

        Args:
            folders: of the job file and of those that it is ``like``, for modules of the user's own.
        """
        return self.model_copy(
            update={
                "evaluation": self.evaluation.resolved(),
                "certification": self.certification.resolved(),
                "module_path": self.resolved_module_path(folders),
            }
        )

    def without_training(self) -> EvaluationJob:
        """The settings of the evaluation alone."""
        return EvaluationJob.model_construct(
            **{name: getattr(self, name) for name in EvaluationJob.model_fields}
        )


def check_radius(key: str, norm: Norm, eps: float | None) -> None:
    """Check the radius of a ball.

    Args:
        key: of the radius, for the message.
        norm: of the ball.
        eps: the radius, [0, 1] units; None if it is left out.

    Raises:
        PydanticCustomError: it covers more than all pixel values.
    """
    if norm == "linf" and (eps or 0) > 1:
        raise refusal(key, f"a radius in [0, 1] pixel units, as in {eps:g}/255")
