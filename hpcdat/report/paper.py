"""The papers' own numbers: tables that a report puts runs beside, and where they contradict themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PaperRow:
    """One row of a paper's table.

    Attributes:
        key: last part of the name that a job's ``reproduces`` gives, such as ``dat-pgd-8``.
        label: as the paper names it.
        setup: what sets it apart: workers, bits, batch.
        values: what the paper states, by quantity; what it leaves out is not there.
        reference: key of the row that this one's times are divided by, if any.
    """

    key: str
    label: str
    setup: str
    values: Mapping[str, float]
    reference: str | None = None


@dataclass(frozen=True)
class PaperTable:
    """A table or figure of a paper.

    Attributes:
        name: as ``hpcdat report --table`` takes it.
        title: where it stands and what it shows.
        work: what the paper trained, so that a report can say where a run differs: settings of the job by
            their dotted names.
        hardware: what the paper ran on.
        quantities: the columns, in order; see :data:`hpcdat.report.comparison.QUANTITIES`.
        rows: in the paper's order.
        notes: where the paper contradicts itself, or does not say enough.
        seeds: whose mean its numbers are; None where it does not say.
    """

    name: str
    title: str
    work: Mapping[str, object]
    hardware: str
    quantities: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    notes: tuple[str, ...] = field(default=())
    seeds: int | None = None


IMAGENET = {"data.images": 1_281_167, "data.image_size": 224, "model.name": "resnet50", "epochs": 30}
DAT_WORK = {**IMAGENET, "attack.eps": 2 / 255, "batch_size": 85}
DAT_HARDWARE = (
    "6 nodes with 6 NVIDIA V100 (or P100) each, dual 22-core CPUs, 1 Gbit/s Ethernet; the HPC rows: "
    "InfiniBand between nodes, NVLink inside"
)


def _dat_1(key: str, label: str, workers: str, *numbers: float, reference: str | None = None) -> PaperRow:
    names = ("ta", "ra", "aa", "t") if len(numbers) == 4 else ("ta", "ra", "aa", "c", "t")
    return PaperRow(key, label, workers, dict(zip(names, numbers, strict=True)), reference)


def _dat_4(key: str, label: str, bits: str, *numbers: float) -> PaperRow:
    values = dict(zip(("ta", "ra", "c", "mb"), numbers, strict=True))
    return PaperRow(key, label, bits, values, reference=f"dat-{'pgd' if 'pgd' in key else 'fgsm'}-32")


def _times(table: str, method: str, label: str, **numbers: float) -> list[PaperRow]:
    quantity = "training" if table == "conadv-3" else "throughput"
    return [
        PaperRow(f"{method}-{batch}", label, f"batch {batch}", {quantity: number})
        for batch, number in ((name.removeprefix("b"), number) for name, number in numbers.items())
    ]


TABLES: dict[str, PaperTable] = {
    table.name: table
    for table in (
        PaperTable(
            "dat-1",
            "DAT paper, Table 1: methods on ImageNet, ResNet-50",
            DAT_WORK,
            DAT_HARDWARE,
            ("ta", "ra", "aa", "c", "t", "speed_up"),
            (
                _dat_1("at", "AT", "1 x 6", 62.70, 40.38, 37.46, 6022),
                _dat_1(
                    "dat-pgd-without-lalr",
                    "DAT-PGD w/o LALR",
                    "6 x 6",
                    *(57.09, 34.02, 30.98, 865, 1932),
                    reference="at",
                ),
                _dat_1("dat-pgd", "DAT-PGD", "6 x 6", 63.75, 38.45, 36.04, 898, 1960, reference="at"),
                _dat_1("fast-at", "Fast AT", "1 x 6", 58.99, 40.78, 37.18, 1544),
                _dat_1(
                    "dat-fgsm-without-lalr",
                    "DAT-FGSM w/o LALR",
                    "6 x 6",
                    *(55.04, 35.03, 32.16, 863, 1080),
                    reference="fast-at",
                ),
                _dat_1("dat-fgsm", "DAT-FGSM", "6 x 6", 58.02, 40.27, 36.02, 859, 1109, reference="fast-at"),
            ),
            (
                "The paper computes the speed-up of computation as T of AT over T - C of DAT-PGD, 5.67. The"
                " same for FGSM gives 6.18, and 7.12 w/o LALR, with six times the workers.",
                "Batch sizes are given as 512 and 6 x 512; 85 images a GPU, as the text says, make 510 a "
                "node.",
                "The step sizes of the attacks are not stated, nor which of the tuned rates DAT took.",
            ),
            seeds=3,
        ),
        PaperTable(
            "dat-4",
            "DAT paper, Table 4: gradient quantisation on ImageNet, ResNet-50",
            DAT_WORK,
            DAT_HARDWARE,
            ("ta", "ra", "c", "c_of_reference", "mb"),
            (
                _dat_4("dat-pgd-32", "DAT-PGD", "ring, 32 bits", 63.75, 38.45, 898, 2924),
                _dat_4("dat-pgd-16", "DAT-PGD", "ring, 16 bits", 61.77, 38.40, 850, 1462),
                _dat_4("dat-pgd-8", "DAT-PGD", "ring, 8 bits", 56.53, 37.90, 592, 731),
                _dat_4("dat-pgd-8-two-sided", "DAT-PGD", "server, 8 bits 2-sided", 53.09, 34.59, 1091, 244),
                _dat_4("dat-pgd-hpc", "DAT-PGD (HPC)", "32 bits, fast links", 63.43, 38.55, 15, 1074),
                _dat_4("dat-fgsm-32", "DAT-FGSM", "ring, 32 bits", 58.02, 40.27, 859, 2924),
                _dat_4("dat-fgsm-16", "DAT-FGSM", "ring, 16 bits", 54.71, 39.29, 849, 1462),
                _dat_4("dat-fgsm-8", "DAT-FGSM", "ring, 8 bits", 50.11, 36.38, 594, 731),
                _dat_4("dat-fgsm-8-two-sided", "DAT-FGSM", "server, 8 bits 2-sided", 48.27, 33.20, 1013, 244),
                _dat_4("dat-fgsm-hpc", "DAT-FGSM (HPC)", "32 bits, fast links", 57.60, 41.70, 15, 310),
            ),
            (
                "2924 MB is 30 times ResNet-50's 97.49 MiB: every one of six nodes sends its gradient to "
                "the five others. A ring all-reduce, which the text names, sends 2 x 5 times, 975 MB.",
                "The HPC rows move 1074 and 310 MB for the same network and protocol: both cannot be right,"
                " and 310 MB is less than six nodes need for any sum of such gradients in 32 bits.",
                "With two-sided quantisation the fewest bytes take the longest time (244 MB, 1091 s; 731 "
                "MB, 592 s), as if all of them passed through the link of one server.",
                "A quarter of the bits take 0.66 of the time, half of them 0.95: more than bytes was "
                "measured.",
                "s = 2^b levels of each sign, as the paper's quantizer has them, are 2^(b+1) + 1 codes and "
                "do not fit into b bits; ours has 2^(b-1) - 1 at most, and fewer in a ring with narrow "
                "lanes.",
            ),
            seeds=3,
        ),
        PaperTable(
            "conadv-3",
            "ConAdv paper, Table 3: training time of ResNet-50 on ImageNet",
            {**IMAGENET, "epochs": 90},
            "TPU v3 pods, 64 images a core",
            ("training",),
            (
                *_times("conadv-3", "vanilla", "ResNet-50", b16k=1194, b32k=622),
                PaperRow("vanilla-64k", "ResNet-50", "batch 64k", {}),
                *_times("conadv-3", "disadv", "DisAdv", b16k=1657, b32k=1191, b64k=592),
                *_times("conadv-3", "conadv", "ConAdv", b16k=1277, b32k=677, b64k=227),
            ),
            (
                "DisAdv takes 1.39 times (16k) and 1.91 times (32k) as long as vanilla training where the "
                "text says about 1.5, and 2.6 times as long as ConAdv at 64k where the text says 1.5 to 2.",
                "ConAdv's 227 s at 64k is a third of its 677 s at 32k, with twice the workers.",
                "Batch 32k on 512 cores is said to run on TPU v3-256, which has 256.",
                "At 64k, top-1 accuracy is 76.2 in Table 1 and 76.7 in Table 5.",
            ),
        ),
        PaperTable(
            "conadv-fig4",
            "ConAdv paper, Figure 4: throughput of ResNet-50 on ImageNet",
            {**IMAGENET, "epochs": 90},
            "TPU v3; (a) 64 images a core, (b) as many cores as the batch allows (2k: TPU v3-512)",
            ("throughput",),
            (
                *_times("conadv-fig4", "disadv", "DisAdv (a)", b4k=10.3, b32k=81.7),
                *(PaperRow(f"conadv-{batch}", "ConAdv (a)", f"batch {batch}", {}) for batch in ("4k", "32k")),
                PaperRow("vanilla-2k-limit", "ResNet-50 (b)", "batch 2k", {"throughput": 75.7}),
                PaperRow("disadv-2k-limit", "DisAdv (b)", "batch 2k", {"throughput": 36.1}),
                PaperRow("conadv-2k-limit", "ConAdv (b)", "batch 2k", {"throughput": 71.3}),
            ),
            (
                "Only the numbers that the text states are here; the others would have to be read off bars.",
                "In (a) the text gives ConAdv about 1.5 times DisAdv's throughput, in (b) about 2 times.",
            ),
        ),
    )
}
