"""The page of the Python interface: the public names, whose docstrings Sphinx reads."""

import hpcdat

HEAD = """# Python

Names that programs may import from `hpcdat`. [Use from Python](../start/python.md) has an example of each.
Images are tensors (N, C, H, W) of pixels in [0, 1]; models normalise them themselves.
"""
GROUPS = {
    "Train and measure": ("autofunction", ("train", "evaluate", "certify")),
    "Attack": ("autoclass", ("PGD",)),
    "Optimise": ("autoclass", ("LAMB", "MomentumLALR", "LARS")),
    "Exchange gradients": ("autoclass", ("QuantizedSum",)),
}
RESULTS = (
    "hpcdat.storage.run_folder.Result",
    "hpcdat.api.Robustness",
    "hpcdat.evaluation.certification.certificates.Certified",
)
ERRORS = ("hpcdat.errors.InputError", "hpcdat.errors.WorkerError", "hpcdat.errors.Stopped")


def page() -> str:
    """The page, in Markdown.

    Raises:
        ValueError: a public name has no place on the page.
    """
    shown = {name for _, names in GROUPS.values() for name in names}
    if shown != set(hpcdat.__all__):
        raise ValueError(f"{__file__}: public names without a group: {shown ^ set(hpcdat.__all__)}")
    parts = [HEAD]
    for title, (directive, names) in GROUPS.items():
        parts += [f"## {title}\n", *(_directive(directive, f"hpcdat.{name}") for name in names)]
    parts += ["## Results\n", *(_directive("autoclass", name) for name in RESULTS)]
    parts += ["## Errors\n", *(_directive("autoexception", name) for name in ERRORS)]
    return "\n".join(parts)


def _directive(directive: str, name: str) -> str:
    members = "   :members:\n   :special-members: __call__\n" if directive == "autoclass" else ""
    return f"```{{eval-rst}}\n.. {directive}:: {name}\n{members}```\n"
