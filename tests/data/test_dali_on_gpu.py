"""DALI's pipeline for a GPU, as far as it can be made without one: its graph, but no serialised pipeline."""

import pytest
import torch
from nvidia.dali import types

from hpcdat.data import dali_loader
from hpcdat.data.dali_autoaugment import AutoAugment


def graph(*, on_gpu=True, **settings):
    """The operators of the pipeline in order, each with its backend."""
    settings = {"encoded": True, "windowed": True, "policy": None} | settings
    pipeline = dali_loader._pipeline(
        source=lambda: None,
        resize=lambda *regions: regions,
        size=224,
        colour=types.RGB,
        on_gpu=on_gpu,
        enable_conditionals=settings["policy"] is not None,
        batch_size=4,
        num_threads=1,
        device_id=0 if on_gpu else None,
        **settings,
    )
    # Pipeline.build would ask for the GPU next.
    pipeline._build_graph()
    (output,) = pipeline._graph_outputs
    assert output.device == ("gpu" if on_gpu else "cpu")
    return pipeline, [(type(one._op).__name__, one._op._device) for one in pipeline._ops]


def backends_of_images(operators):
    """Without the inputs and what computes places and sizes, which stay on the CPU."""
    return [
        (name, backend)
        for name, backend in operators
        if name not in ("ExternalSource", "_TensorSubscript", "Cast")
    ]


def test_images_are_decoded_and_resized_on_the_gpu():
    _, operators = graph()
    assert backends_of_images(operators) == [
        ("ImageSlice", "mixed"),
        ("Resize", "gpu"),
        ("Constant", "gpu"),
        ("Slice", "gpu"),
        ("Flip", "gpu"),
    ]


def test_random_crops_need_no_window():
    _, operators = graph(windowed=False)
    assert [name for name, _ in backends_of_images(operators)] == ["ImageSlice", "Resize", "Flip"]


def test_pixels_in_memory_are_cut_on_the_gpu():
    _, operators = graph(encoded=False)
    assert backends_of_images(operators)[0] == ("Slice", "gpu")
    assert ("ImageSlice", "mixed") not in operators


def test_autoaugment_changes_images_on_the_gpu():
    _, operators = graph(policy=AutoAugment())
    images = [
        backend for name, backend in operators if name in ("WarpAffine", "ColorTwist", "Flip", "Resize")
    ]
    assert images and set(images) == {"gpu"}
    # A function of Python would bring the images back to the CPU.
    assert "PythonFunction" not in {name for name, _ in operators}


def test_without_a_gpu_nothing_is_placed_on_one():
    _, operators = graph(on_gpu=False)
    assert {backend for _, backend in operators} == {"cpu"}


def test_colours_are_interpolated_as_on_the_cpu():
    pipeline, _ = graph()
    (decoder,) = [one._op for one in pipeline._ops if type(one._op).__name__ == "ImageSlice"]
    assert decoder._init_args["jpeg_fancy_upsampling"] is True


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_dali_serialises_no_pipeline_of_a_gpu_without_one():
    # When it does, compare the serialised pipeline with a recorded one.
    pipeline, _ = graph()
    with pytest.raises(RuntimeError, match="CUDA is not available"):
        pipeline.serialize()
