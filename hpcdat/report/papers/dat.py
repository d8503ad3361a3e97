"""The DAT paper (Zhang et al., UAI 2022): Tables 1 to 4, and the jobs of Figure 4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpcdat.report.papers.paper_table import RESNET_50_ON_IMAGENET, PaperRow, PaperTable

WORK = {**RESNET_50_ON_IMAGENET, "epochs": 30, "attack.eps": 2 / 255, "batch_size": 85}
"""Settings that all rows of Tables 1 and 4 share."""
HARDWARE = (
    "6 nodes with 6 NVIDIA V100 (or P100) each, dual 22-core CPUs, 1 Gbit/s Ethernet; the HPC rows: "
    "InfiniBand between nodes, NVLink inside"
)
"""What the runs of Tables 1 and 4 used."""
IN_32_BITS = {
    "exchange.protocol": "hierarchical",
    "exchange.between_nodes": "allgather",
    "exchange.bits": 32,
}
"""The exchange whose bytes Table 4 has for the rows of 32 bits, which are those of Table 1."""
RADII = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
"""l2 radii of Table 2. The paper gives no unit: [0, 1] pixel units are assumed, as in Salman et al. 2019."""
FIGURE_4_DATA = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
"""Panels of Figure 4, by the first part of ``dat-fig4/DATA-LINE`` in a job's ``reproduces``."""
FIGURE_4_LINES = {"fine-tuned": "fine-tuned", "from-scratch": "from scratch"}
"""Its lines, by the second part. The text states no numbers of this figure."""
RA_SPREADS = {"dat-pgd": 0.5, "dat-fgsm": 1.5}
"""Of Table 1, points, from the text of Sec. 6.2: "a larger RA variance of DAT-FGSM (around 1.5%) than DAT-PGD
(around 0.5%)". Standard deviations over the three seeds are assumed."""


def accuracy_at(radius: float) -> str:
    """Name of the certified accuracy at a radius among the quantities."""
    return f"ca-{radius:g}"


def stated_accuracies(row: PaperRow) -> dict[float, float]:
    """Certified accuracies (%) of a row of Table 2 by radius."""
    return {radius: row.values[accuracy_at(radius)] for radius in RADII}


def _table_1(key: str, label: str, workers: str, *numbers: float, reference: str | None = None) -> PaperRow:
    names = ("ta", "ra", "aa", "t") if len(numbers) == 4 else ("ta", "ra", "aa", "c", "t")
    work = {"exchange.overlap": False} | (IN_32_BITS if reference else {})
    spreads = {"ra": RA_SPREADS[key]} if key in RA_SPREADS else {}
    return PaperRow(
        key, label, workers, dict(zip(names, numbers, strict=True)), reference, work, spreads=spreads
    )


def _table_2(key: str, label: str, copies: int, sigma: float, *accuracies: float) -> PaperRow:
    values = {accuracy_at(radius): value for radius, value in zip(RADII, accuracies, strict=True)}
    work = {"smoothing.sigma": sigma, "smoothing.copies": copies}
    return PaperRow(key, f"{label} (N = {copies})", f"sigma {sigma:g}", values, work=work)


def _table_3(key: str, label: str, model: str, batch: int, *numbers: float) -> PaperRow:
    values = dict(zip(("ta", "ra", "aa", "c", "t"), numbers, strict=True))
    work = {"model.name": model, "batch_size": batch, "exchange.overlap": False}
    return PaperRow(key, label, f"12 x {batch}", values, work=work)


def _table_4(key: str, label: str, bits: str, work: Mapping[str, Any], *numbers: float) -> PaperRow:
    values = dict(zip(("ta", "ra", "c", "mb"), numbers, strict=True))
    reference = f"dat-{'pgd' if 'pgd' in key else 'fgsm'}-32"
    return PaperRow(key, label, bits, values, reference, {**work, "exchange.overlap": False})


def _codes(bits: int, *, two_sided: bool = False) -> dict[str, Any]:
    """(A5) and (A6) for every tensor of the model, sign and levels in so many bits."""
    return {
        "exchange.protocol": "hierarchical",
        "exchange.between_nodes": "parameter_server" if two_sided else "allgather",
        "exchange.bits": bits,
        "exchange.two_sided": two_sided,
        "exchange.norm": "l2",
        "exchange.block": "tensor",
        "exchange.levels": 2 ** (bits - 1) - 1,
        "exchange.lane_bits": None,
        "exchange.exact_1d": False,
        "exchange.rounding": "independent",
        "exchange.rotation": "none",
        "exchange.error_feedback": False,
    }


SERVER = _codes(8, two_sided=True)
"""The exchange of Table 4's two-sided rows, which needs a server."""
HPC = {"exchange.protocol": "ring", "exchange.bits": 32}
"""The exchange of Table 4's rows with fast links."""

TABLES = (
    PaperTable(
        "dat-1",
        "DAT paper, Table 1: methods on ImageNet, ResNet-50",
        WORK,
        HARDWARE,
        ("ta", "ra", "aa", "c", "t", "speed_up"),
        (
            _table_1("at", "AT", "1 x 6", 62.70, 40.38, 37.46, 6022),
            _table_1(
                "dat-pgd-without-lalr",
                "DAT-PGD w/o LALR",
                "6 x 6",
                *(57.09, 34.02, 30.98, 865, 1932),
                reference="at",
            ),
            _table_1("dat-pgd", "DAT-PGD", "6 x 6", 63.75, 38.45, 36.04, 898, 1960, reference="at"),
            _table_1("fast-at", "Fast AT", "1 x 6", 58.99, 40.78, 37.18, 1544),
            _table_1(
                "dat-fgsm-without-lalr",
                "DAT-FGSM w/o LALR",
                "6 x 6",
                *(55.04, 35.03, 32.16, 863, 1080),
                reference="fast-at",
            ),
            _table_1("dat-fgsm", "DAT-FGSM", "6 x 6", 58.02, 40.27, 36.02, 859, 1109, reference="fast-at"),
        ),
        (
            "The paper computes the speed-up of computation as T of AT over T - C of DAT-PGD, 5.67. The"
            " same for FGSM gives 6.18, and 7.12 w/o LALR, with six times the workers.",
            "Batch sizes are given as 512 and 6 x 512; 85 images a GPU, as the text says, make 510 a node.",
            "The step sizes of the attacks are not stated, nor which of the tuned rates DAT took.",
            "The paper's spreads of RA are from its text, which calls them variance, around 0.5 % and 1.5 %; "
            "standard deviations in points are assumed.",
            "Early stopping (Rice et al. 2020) is stated for DAT, not for the baselines, and without the "
            "number of held-out images.",
        ),
        seeds=3,
    ),
    PaperTable(
        "dat-2",
        "DAT paper, Table 2: certified accuracy of Smooth-AT on CIFAR-10, ResNet-18",
        {"data.source": "cifar10", "model.name": "preact-resnet18", "epochs": 100},
        "nodes with NVIDIA V100 (or P100), 1 Gbit/s Ethernet; how many is not stated",
        (accuracy_at(0), *map(accuracy_at, RADII), "acr"),
        (
            _table_2("baseline-12", "Baseline", 2, 0.12, 83.2, 80.4, 76.2, 72.8, 65.4, 54.5, 0.0),
            _table_2("dat-12", "DAT", 20, 0.12, 83.8, 81.2, 78.4, 74.8, 66.1, 55.0, 0.0),
            _table_2("baseline-25", "Baseline", 2, 0.25, 75.2, 73.0, 70.8, 67.8, 62.5, 56.2, 49.8),
            _table_2("dat-25", "DAT", 20, 0.25, 76.4, 74.8, 71.6, 68.8, 63.2, 56.6, 51.4),
        ),
        (
            "The radii have no unit: [0, 1] pixel units are assumed, as in Salman et al. 2019.",
            "n0, n, alpha and the number of images are not stated. That accuracy at sigma 0.12 is 0 from "
            "r = 0.5 on, but not at 0.4, fits n = 100,000 and alpha = 0.001, and no n of 10,000.",
        ),
        seeds=3,
        certified=True,
    ),
    PaperTable(
        "dat-3",
        "DAT paper, Table 3: CIFAR-10 with 500,000 unlabelled images",
        {"attack.eps": 8 / 255},
        "12 nodes with one NVIDIA V100 (or P100) each, 1 Gbit/s Ethernet",
        ("ta", "ra", "aa", "c", "t"),
        (
            *(
                _table_3(f"resnet18-{key}", f"{label}, ResNet-18", "preact-resnet18", 2048, *numbers)
                for key, label, numbers in (
                    ("dat-pgd", "DAT-PGD", (87.00, 47.34, 45.23, 86, 451)),
                    ("dat-fgsm", "DAT-FGSM", (88.00, 45.84, 43.19, 86, 124)),
                )
            ),
            *(
                _table_3(f"wrn-{key}", f"{label}, WRN-28-10", "wide-resnet28-10", 128, *numbers)
                for key, label, numbers in (
                    ("dat-pgd", "DAT-PGD", (89.37, 62.06, 58.35, 302, 1020)),
                    ("dat-fgsm", "DAT-FGSM", (89.52, 61.24, 57.65, 302, 674)),
                )
            ),
            PaperRow(
                "carmon",
                "Carmon et al. 2019, WRN-28-10",
                "RobustBench, small batch",
                {"ta": 89.69, "aa": 59.53},
                cited=True,
            ),
        ),
        (
            "The numbers of Carmon et al. 2019 are from the paper's text, which quotes RobustBench.",
            "The share of unlabelled images in a batch, the regulariser (pseudo-labels or TRADES) and the "
            "rates are not stated; Carmon et al. take half of each batch.",
            "The paper trains for 100 epochs and does not say of which images. A pass over all 550,000 is "
            "assumed. With ResNet-18 its C fits: 22.4 iterations in 86 s are 3.8 s each, an all-gather of "
            "42.6 MiB among twelve nodes at 1 Gbit/s (3.9 s). With WRN-28-10 it does not: 302 s are 0.84 s "
            "an iteration, less than its 139 MiB take to leave one card (1.2 s).",
        ),
        seeds=3,
        epochs=(100, 550_000),
    ),
    PaperTable(
        "dat-4",
        "DAT paper, Table 4: gradient quantisation on ImageNet, ResNet-50",
        WORK,
        HARDWARE,
        ("ta", "ra", "c", "c_of_reference", "mb", "mb_of_reference"),
        (
            _table_4("dat-pgd-32", "DAT-PGD", "32 bits", IN_32_BITS, 63.75, 38.45, 898, 2924),
            _table_4("dat-pgd-16", "DAT-PGD", "16 bits", _codes(16), 61.77, 38.40, 850, 1462),
            _table_4("dat-pgd-8", "DAT-PGD", "8 bits", _codes(8), 56.53, 37.90, 592, 731),
            _table_4("dat-pgd-8-two-sided", "DAT-PGD", "8 bits, 2-sided", SERVER, 53.09, 34.59, 1091, 244),
            _table_4("dat-pgd-hpc", "DAT-PGD (HPC)", "32 bits, fast links", HPC, 63.43, 38.55, 15, 1074),
            _table_4("dat-fgsm-32", "DAT-FGSM", "32 bits", IN_32_BITS, 58.02, 40.27, 859, 2924),
            _table_4("dat-fgsm-16", "DAT-FGSM", "16 bits", _codes(16), 54.71, 39.29, 849, 1462),
            _table_4("dat-fgsm-8", "DAT-FGSM", "8 bits", _codes(8), 50.11, 36.38, 594, 731),
            _table_4("dat-fgsm-8-two-sided", "DAT-FGSM", "8 bits, 2-sided", SERVER, 48.27, 33.20, 1013, 244),
            _table_4("dat-fgsm-hpc", "DAT-FGSM (HPC)", "32 bits, fast links", HPC, 57.60, 41.70, 15, 310),
        ),
        (
            "2924 MB is 30 times ResNet-50's 97.49 MiB: every one of six nodes sends its gradient to "
            "the five others, the all-gather that the authors' public code has for codes. A ring all-reduce, "
            "which the text names and that code calls in float32, sends 2 x 5 times, 975 MB. 1462 and 731 MB "
            "are a half and a quarter of 2924. 244 MB, two-sided, is a quarter of 10 x 97.49 MiB, as when "
            "one of the six nodes is the server of the other five; a sharded server would send as much.",
            "The HPC rows move 1074 and 310 MB for the same network and protocol: both cannot be right,"
            " and 310 MB is less than six nodes need for any sum of such gradients in 32 bits.",
            "With two-sided quantisation the fewest bytes take the longest time (244 MB, 1091 s; 731 "
            "MB, 592 s), as if all of them passed through the link of one server.",
            "A quarter of the bits take 0.66 of the time, half of them 0.95: more than bytes was measured.",
            "8 bits take a quarter of the bytes of 32, sign included, although Appendix 1 counts 32 + d + bd "
            "bits, with separate bits for the signs: 823 MB at b = 8. Nor do its s = 2^b levels of each "
            "sign, 2^(b+1) + 1 codes with zero, fit. How many there were is not stated. The authors' public "
            "code has s = 127 in a byte with the sign and one l2 norm for each tensor, biases and batch norm "
            "too; it has no 16 bits and no server. Our rows have these norms and s = 2^(b-1) - 1.",
        ),
        seeds=3,
    ),
)
