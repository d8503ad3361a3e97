"""The ConAdv paper (Liu et al., ICLR 2022): Table 3 and Figure 4."""

from __future__ import annotations

from hpcdat.report.papers.paper_table import RESNET_50_ON_IMAGENET, PaperRow, PaperTable


def _times(table: str, method: str, label: str, **numbers: float) -> list[PaperRow]:
    quantity = "training" if table == "conadv-3" else "throughput"
    return [
        PaperRow(f"{method}-{batch}", label, f"batch {batch}", {quantity: number})
        for batch, number in ((name.removeprefix("b"), number) for name, number in numbers.items())
    ]


TABLES = (
    PaperTable(
        "conadv-3",
        "ConAdv paper, Table 3: training time of ResNet-50 on ImageNet",
        {**RESNET_50_ON_IMAGENET, "epochs": 90},
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
        {**RESNET_50_ON_IMAGENET, "epochs": 90},
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
