"""The page of a run's files: their fields, from the classes that write or read them."""

import ast
import inspect
import re
from collections.abc import Iterator

from hpcdat.evaluation.certification.certificates import Counts
from hpcdat.performance.autotune import Candidate, Choice
from hpcdat.performance.benchmark_file import BenchmarkFile, Row
from hpcdat.performance.calibration import AssumedLinks, Calibration
from hpcdat.performance.cost_model import Network
from hpcdat.storage.checkpoint_format import Checkpoint, EpochTotals
from hpcdat.storage.evaluated import Concluded, Evaluated, WeightsResult
from hpcdat.storage.run_folder import Result
from hpcdat.training.epoch_log import EpochLog

HEAD = """# Files of a run

The fields of the files that hpcdat writes, from the classes that write and check them. [Stop and
resume](../start/stop-and-resume.md#files-of-a-run) lists all files of a run's folder. `job.yaml` has the
[settings](settings.md).
"""
FILES: dict[str, tuple[str, tuple[type, ...]]] = {
    "result.json": ("The result of a run.", (Result, Concluded, Evaluated)),
    "result.json of given weights": (
        "The result of `hpcdat evaluate JOB.yaml` for weights that no run has trained has these fields, and "
        "those of `Concluded` and `Evaluated` above.",
        (WeightsResult,),
    ),
    "exchange.json": ("What `exchange.protocol: auto` measured, predicted and chosen.", (Choice, Candidate)),
    "certification/*.jsonl": ("After a first line with the cache key: one line an image.", (Counts,)),
    "checkpoints/*.pt": (
        "Checked by a checksum; reading one runs no code. Another version of hpcdat may not read it: "
        "`hpcdat export` writes weights for other programs.",
        (Checkpoint,),
    ),
    "Calibration of hpcdat plan": (
        "The file of `hpcdat plan --save` and `--calibration`. A file written by hand may have assumed links "
        "as its `network`.",
        (Calibration, Network, AssumedLinks),
    ),
    "File of a benchmark": ("What `--json` of every benchmark writes.", (BenchmarkFile, Row)),
}
EPOCH = {
    "event": "`epoch`",
    "epoch": "number of epochs done",
    "lr": "learning rate of the last step",
    "left_out_images": "training images that fill no global batch",
    "training_accuracy": "share of training images classified correctly without perturbation; null if the "
    "cost does not use them so",
    "images_per_second": "of all workers together",
    "data_share": "share of the time that worker 0 waited for images",
    "megabytes": "MiB that all workers send in an iteration, computed",
    "megabytes_busiest_card": "MiB that pass the busiest network card in an iteration, computed",
    "flops": "floating-point operations of the training so far; null if they are not counted",
    "gpu_watts": "mean power of all GPUs; null if not measured",
}
"""Fields of an epoch's line that are not in :class:`EpochTotals`."""
OF_WORKERS = {
    "gpu_memory_gib": "memory of the fullest GPU; null if unknown",
    "gpu_utilisation": "mean of the GPUs; null if unknown",
    "workers": "`step_seconds` and `longest_step_seconds`: median and longest step of each worker",
}
"""Fields of an epoch's line that come from all workers."""


def page() -> str:
    """The page, in Markdown.

    Raises:
        ValueError: an epoch's line has fields that are not described here.
    """
    parts = [HEAD, *_metrics()]
    for name, (meaning, classes) in FILES.items():
        parts.append(f"## {name}\n\n{meaning}\n")
        for each in classes:
            parts += [f"`{each.__name__}`: {_first_sentence(each)}\n", _table(_rows(each))]
    return "\n".join(parts)


def _metrics() -> Iterator[str]:
    written = _keywords(inspect.getsource(EpochLog))
    if written != (described := {*EPOCH, *OF_WORKERS}):
        raise ValueError(f"{__file__}: fields of an epoch's line: {written ^ described}")
    yield "## metrics.jsonl\n\nOne line for each event. A line with the event `epoch` has these fields:\n"
    yield _table([(name, "", meaning) for name, meaning in {**EPOCH, **OF_WORKERS}.items()])
    yield "and the sums over its steps, where `cost` is the mean instead:\n"
    yield _table(_rows(EpochTotals))
    yield (
        "Other events: `evaluation` and `averaged-evaluation` with `epoch`, `ta`, `ra` and `held_out` "
        "(whether of held-out images), `overfitting` with `epoch`, `ra` and `best_ra`, `finished`.\n"
    )


def _keywords(source: str) -> set[str]:
    """Names of the fields in the calls of ``log``, and in the dictionary of :meth:`EpochLog._of_workers`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "log":
            names |= {keyword.arg for keyword in node.keywords if keyword.arg}
        if isinstance(node, ast.FunctionDef) and node.name == "_of_workers":
            returned = [each.value for each in ast.walk(node) if isinstance(each, ast.Return)]
            keys = [key for each in returned if isinstance(each, ast.Dict) for key in each.keys]
            names |= {key.value for key in keys if isinstance(key, ast.Constant)}
    return names


def _rows(kind: type) -> list[tuple[str, str, str]]:
    """Names, type and meaning of the fields that the class itself declares.

    Raises:
        ValueError: its docstring does not have them all.
    """
    types = {name: text for name, text in inspect.get_annotations(kind).items() if name != "model_config"}
    rows = []
    for names, meaning in _attributes(kind):
        if any(name in types for name in names):
            kinds = dict.fromkeys(_type(types.pop(name)) for name in names)
            rows.append(("`, `".join(names), " and ".join(kinds), meaning))
    if types:
        raise ValueError(f"{__file__}: {kind.__name__}: not described: {', '.join(types)}")
    return rows


def _type(annotation: str) -> str:
    """A type as it is written in the class, without what pydantic alone needs."""
    text = re.sub(r"Annotated\[(list\[[^\]]*\]|\w+), Field\(.*\)\]", r"\1", annotation)
    return f"`{text}`".replace("|", "\\|")


def _attributes(kind: type) -> Iterator[tuple[list[str], str]]:
    """The section "Attributes" of a docstring: names, which may share a line, and their meaning."""
    _, _, section = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    for entry in re.split(r"\n(?=    \S)", "\n" + section.split("\n\n")[0]):
        names, colon, meaning = entry.partition(":")
        if colon:
            yield [name.strip() for name in names.split(",")], " ".join(meaning.split()).removesuffix(".")


def _first_sentence(kind: type) -> str:
    return inspect.cleandoc(kind.__doc__ or "").splitlines()[0]


def _table(rows: list[tuple[str, str, str]]) -> str:
    typed = any(kind for _, kind, _ in rows)
    head = "| field | type | meaning |\n|---|---|---|\n" if typed else "| field | meaning |\n|---|---|\n"
    cells = [[f"`{n}`", *([t] if typed else []), _markdown(m)] for n, t, m in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return head + "\n".join(lines) + "\n"


def _markdown(text: str) -> str:
    """A docstring's text, whose roles and code are those of reStructuredText."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    return text.replace("``", "`").replace("|", "\\|")
