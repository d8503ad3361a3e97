"""A page of test images, their perturbations, and what the network says before and after."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hpcdat.evaluation.gallery import Shown
from hpcdat.report.html_page import TEMPLATES

LARGEST_SIDE = 96
"""Pixels; larger images are made smaller for the page."""


def gallery_page(shown: Sequence[Shown], classes: Sequence[str], attack: str, model: str) -> str:
    """A single HTML file, which loads nothing else.

    Args:
        shown: the images.
        classes: their names.
        attack: as text.
        model: what was attacked.
    """
    largest = max((float(np.abs(one.after - one.before).max()) for one in shown), default=0.0)
    factor = 0.5 / largest if largest else 0.0
    rows = [
        {
            "label": classes[one.label],
            "robust": one.robust,
            "before": _data_uri(one.before),
            "perturbation": _data_uri(0.5 + factor * (one.after - one.before)),
            "after": _data_uri(one.after),
            "says_before": _says(one.probabilities_before, classes),
            "says_after": _says(one.probabilities_after, classes),
        }
        for one in shown
    ]
    size = shown[0].before.shape[1:] if shown else (0, 0)
    notes = [
        f"Perturbations are magnified {factor:.3g} times; grey is no change.",
        "Shown are the first test images that the attack breaks and the first that withstand it, of those "
        "that are classified correctly without attack.",
    ]
    if max(size) > LARGEST_SIDE:
        notes.append(f"Images of {size[1]} x {size[0]} pixels, made smaller for this page.")
    return TEMPLATES.get_template("gallery.html.j2").render(
        rows=rows, attack=attack, model=model, notes=notes, broken=sum(not one.robust for one in shown)
    )


def _says(probabilities: NDArray[np.float32], classes: Sequence[str]) -> str:
    top = int(probabilities.argmax())
    return f"{classes[top]}, {100 * probabilities[top]:.1f} %"


def _data_uri(image: NDArray[Any]) -> str:
    """An image (C, H, W) in [0, 1] as a PNG; one of neither one nor three channels as their mean."""
    pixels = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
    if len(pixels) == 3:
        picture = Image.fromarray(pixels.transpose(1, 2, 0), "RGB")
    else:
        picture = Image.fromarray(pixels.mean(0).round().astype(np.uint8), "L")
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
