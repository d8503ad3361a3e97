"""Triton's kernels give the bits of the eager codec: interpreted on a CPU, on a GPU where there is one."""

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version

from hpcdat.config.sections import Exchange
from hpcdat.distributed.loopback import loopback, run_in_lockstep
from hpcdat.exchange import resolve
from hpcdat.exchange.bit_packing import Lanes
from hpcdat.exchange.codecs import Quantized, can_compile, kernels_on_gpu
from hpcdat.exchange.counter_rng import correlated_key, split_key
from hpcdat.exchange.protocols import Draw, ErrorFeedback, lanes_for
from hpcdat.exchange.quantizer import Quantizer
from hpcdat.exchange.resolve import make_plan
from tests.conftest import CHECKOUT
from tests.distributed.programs.exchange import vector_of

triton = pytest.importorskip("triton")
CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BITS = [1, 2, 3, 4, 5, 6, 7, 8, 16]
LENGTHS = [1, 63, 64, 65, 125, 4 * 64 + 3, 8 * 64]
RUNS_KERNELS = pytest.mark.skipif(
    DEVICE.type == "cpu"
    and Version(triton.__version__) < Version("3.7")
    and Version(np.__version__) >= Version("2.4"),
    reason="Triton's interpreter before 3.7 does not work with NumPy 2.4",
)
KEYS = {
    "independent": split_key(0xFEDCBA9876543210, CPU),
    "correlated": correlated_key(0xFEDCBA9876543210, 0x9E3779B97F4A7C15, 2, 6, CPU),
}


def numbers(*shape):
    """Normal numbers, from block to block of other sizes."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(shape[-1]))
    return x * torch.logspace(-3, 1, shape[-1])


def bits_of(x):
    """Float32 as integers, with one pattern for all NaN."""
    return torch.where(x.isnan(), torch.tensor(torch.nan), x).view(torch.int32)


def check_messages(quantizer, x, key):
    """Kernels against eager code: messages of rows (rows, n), the numbers in them, and their sum."""
    eager, kernels, count = (
        Quantized(quantizer, kernels=False),
        Quantized(quantizer, kernels=True),
        x.shape[1],
    )
    expected = eager.encode(x, key)
    messages = kernels.encode(x.to(DEVICE), key.to(DEVICE)).cpu()
    start = 4 * quantizer.blocks(count)
    norms, right = (m[:, :start].view(torch.float32) for m in (messages, expected))
    assert torch.equal(bits_of(norms), bits_of(right))
    assert torch.equal(messages[:, start:], expected[:, start:])
    sent = expected.to(DEVICE)
    decoded, total = kernels.decode(sent, count), kernels.decode_sum(sent, count)
    assert torch.equal(bits_of(decoded.cpu()), bits_of(eager.decode(expected, count)))
    assert torch.equal(bits_of(total.cpu()), bits_of(eager.decode_sum(expected, count)))


def check_lanes(quantizer, x, key, lanes, workers):
    """Kernels against eager code: the words of a vector (n,), and the sum of as many workers' words."""
    eager, kernels = Quantized(quantizer, kernels=False), Quantized(quantizer, kernels=True)
    norms = eager.norms(x)
    assert torch.equal(bits_of(kernels.norms(x.to(DEVICE)).cpu()), bits_of(norms))
    norms = torch.where(norms.isfinite(), norms, torch.inf)
    words = eager.to_lanes(x, norms, key, lanes)
    found = kernels.to_lanes(x.to(DEVICE), norms.to(DEVICE), key.to(DEVICE), lanes).cpu()
    assert found.dtype == lanes.word and torch.equal(found, words)
    words = words * workers
    expected = eager.from_lanes(words, norms, lanes, len(x), workers)
    total = kernels.from_lanes(words.to(DEVICE), norms.to(DEVICE), lanes, len(x), workers).cpu()
    assert torch.equal(bits_of(total), bits_of(expected))


@RUNS_KERNELS
@pytest.mark.parametrize("rounding", KEYS)
@pytest.mark.parametrize("norm", ["max", "l2"])
@pytest.mark.parametrize("bits", BITS)
def test_messages(bits, norm, rounding):
    """Each width meets four lengths, of one row and of two."""
    number = 2 * (norm == "l2") + (rounding == "correlated")
    count = LENGTHS[(BITS.index(bits) + 2 * number) % len(LENGTHS)]
    check_messages(Quantizer(bits, norm, block=64), numbers(1 + number % 2, count), KEYS[rounding])


@RUNS_KERNELS
@pytest.mark.parametrize("count", [1, 511, 512, 513, 1000, 4 * 512 + 3])
@pytest.mark.parametrize("bits", [4, 8])
def test_messages_of_every_length(bits, count):
    check_messages(Quantizer(bits), numbers(2, count), KEYS["independent"])


@RUNS_KERNELS
@settings(max_examples=10)
@given(
    st.integers(1, 300),
    st.integers(1, 3),
    st.sampled_from(BITS),
    st.sampled_from([16, 64]),
    st.integers(0, 2**64 - 1),
)
def test_messages_of_any_shape(count, rows, bits, block, key):
    check_messages(Quantizer(bits, block=block), numbers(rows, count), split_key(key, CPU))


@RUNS_KERNELS
@pytest.mark.parametrize("width", range(1, 32))
def test_lanes(width):
    """With as many workers as a lane has room for; codes of as many bits as fit."""
    bits = max(bits for bits in BITS if Quantizer(bits).largest < 2**width)
    quantizer, lanes = Quantizer(bits, block=64), Lanes.for_sums_up_to(2**width - 1)
    assert lanes.width == width
    key = list(KEYS.values())[width % 2]
    check_lanes(quantizer, numbers(64 * 3 + width), key, lanes, (2**width - 1) // quantizer.largest)


@RUNS_KERNELS
def test_lanes_of_fewer_levels():
    quantizer = Quantizer(8, block=64, levels=21)
    check_lanes(quantizer, numbers(500), KEYS["independent"], lanes_for(quantizer, 6), 6)


@RUNS_KERNELS
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
@pytest.mark.parametrize("norm", ["max", "l2"])
@pytest.mark.parametrize("bits", [1, 4, 8, 16])
def test_special_numbers(bits, norm):
    """A block each: zeros of both signs, denormals, mixed sizes, the largest; NaN and infinities."""
    x = numbers(1, 9 * 16)
    for block, special in enumerate([0.0, -0.0, 1e-42, -1e-40, 3e38, torch.nan, torch.inf, -torch.inf]):
        x[0, 16 * block + block : 16 * (block + 1)] = special
    quantizer = Quantizer(bits, norm, block=16)
    check_messages(quantizer, x, KEYS["independent"])
    check_lanes(quantizer, x[0], KEYS["correlated"], lanes_for(quantizer, 6), 6)


EXCHANGES = [
    {"protocol": "ring", "bits": 8, "rounding": "correlated"},
    {"protocol": "ring", "bits": 4, "lane_bits": 8, "rotation": "hadamard"},
    {"protocol": "allgather", "bits": 4, "norm": "l2"},
    {"protocol": "parameter_server", "bits": 16, "two_sided": True},
    {"protocol": "sharded_server", "bits": 2, "two_sided": True, "rounding": "correlated"},
]


@RUNS_KERNELS
@pytest.mark.parametrize("chosen", EXCHANGES, ids=lambda chosen: chosen["protocol"])
def test_exchanges(chosen, monkeypatch):
    """Two steps with error feedback among three workers: every worker gets the sum of the eager code."""
    sums = []
    for kernels in (False, True):
        monkeypatch.setattr(resolve, "_quantized", lambda q, k=kernels, **_: Quantized(q, kernels=k))
        device, ranks = DEVICE if kernels else CPU, loopback(3)
        plans = [make_plan(Exchange(**{"block": 64, "error_feedback": True} | chosen), r) for r in ranks]
        feedbacks = [ErrorFeedback() for _ in ranks]
        for step in range(2):
            draw = Draw(5, 1, step, 0, device)
            vectors = [torch.from_numpy(vector_of(rank.rank, step)).to(device) for rank in ranks]
            totals = run_in_lockstep(
                [
                    plan.protocol(rank, vector, draw, "sum", feedback)
                    for plan, rank, vector, feedback in zip(plans, ranks, vectors, feedbacks, strict=True)
                ]
            )
            sums += [total.cpu() for total in totals]
            for feedback in feedbacks:
                feedback.commit(counts=True)
    eager, with_kernels = sums[:6], sums[6:]
    assert all(torch.equal(a, b) for a, b in zip(eager, with_kernels, strict=True))


def test_kernels_are_chosen_for_tensors_on_a_gpu_only(monkeypatch):
    codec = Quantized(Quantizer(8))
    on_gpu, on_cpu, nothing = (
        SimpleNamespace(is_cuda=is_cuda, numel=lambda n=n: n)
        for is_cuda, n in ((True, 5), (False, 5), (True, 0))
    )
    kernels_on_gpu.cache_clear()
    assert (codec._kernels_for(on_gpu) is not None) == can_compile()
    assert codec._kernels_for(on_cpu) is None and codec._kernels_for(nothing) is None
    assert Quantized(Quantizer(8), kernels=False)._kernels_for(on_gpu) is None
    for block in (None, 100, 8, 16384):
        assert Quantized(Quantizer(8, block=block))._kernels_for(on_gpu) is None
        with pytest.raises(ValueError, match=f"from 16 to 8192, not {block}"):
            Quantized(Quantizer(8, block=block), kernels=True)
    kernels_on_gpu.cache_clear()
    monkeypatch.setattr("hpcdat.exchange.codecs.find_spec", lambda name: None)
    assert codec._kernels_for(on_gpu) is None
    kernels_on_gpu.cache_clear()


def ptx_of_the_codec(folder, *arguments):
    """The PTX of the kernels, by name, compiled without a GPU."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(folder)
    done = subprocess.run(
        [sys.executable, "-m", "tests.exchange.ptx_of_the_codec", *arguments],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def ptx(tmp_path_factory):
    return ptx_of_the_codec(tmp_path_factory.mktemp("triton"))


def instructions(code):
    return re.findall(r"^\s*(?:@\S+\s+)?([a-z][\w.:]*)\s[^:]*;", code, re.MULTILINE)


def check_rounding(ptx):
    """No fused multiply-add, divisions and roots rounded to nearest, denormal numbers kept."""
    for name, code in ptx.items():
        used = [i for i in instructions(code) if i.endswith(".f32")]
        assert not [
            i for i in used if i.startswith("fma") or ".ftz" in i or ".approx" in i or ".full" in i
        ], name
        arithmetic = [i for i in used if i.split(".")[0] in ("add", "sub", "mul", "div", "sqrt")]
        # Without an explicit rounding the assembler may fuse what the compiler has not.
        assert arithmetic == [i for i in arithmetic if ".rn" in i], name
        assert ("div.rn.f32" in code) == ("norms" not in name), name


@pytest.mark.full
def test_compiled_kernels_round_as_written(ptx):
    assert len(ptx) == 10 and "sqrt.rn.f32" in ptx["1 bit: norms"]
    check_rounding(ptx)


@pytest.mark.full
def test_kernels_of_every_number_of_bits_compile_and_round_as_written(tmp_path):
    ptx = ptx_of_the_codec(tmp_path, "--every")
    assert len(ptx) == 5 * len(BITS)
    check_rounding(ptx)


@pytest.mark.full
def test_compiled_kernels_read_and_write_each_number_once(ptx):
    """Bytes per thread, of 128 in a tile of 2048 numbers in four blocks, at 8 bits."""

    def moved(code, kind):
        sizes = re.findall(rf"\b{kind}\.global(?:\.v(\d))?\.[a-z](\d+)\b", code)
        return sum(int(many or 1) * int(width) // 8 for many, width in sizes)

    key = 2 * 4
    encode, decode = ptx["8 bits: encode"], ptx["8 bits: decode"]
    # A thread's 16 numbers are of one block, whose norm only one thread stores.
    assert (moved(encode, "ld"), moved(encode, "st")) == (16 * 4 + key, 16 * 1 + 4)
    # Before Triton 3.8 it reads the norm for every four of them, from the cache after the first time.
    norms = 4 if Version(triton.__version__) < Version("3.8") else 1
    assert (moved(decode, "ld"), moved(decode, "st")) == (16 * 1 + 4 * norms, 16 * 4)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("norm", ["max", "l2"])
@pytest.mark.parametrize("bits", BITS)
def test_a_million_numbers_on_a_gpu(bits, norm):
    """Many programs at once, in blocks of 512."""
    check_messages(Quantizer(bits, norm), numbers(3, 2**20 + 3), KEYS["correlated"])
    quantizer = Quantizer(bits, norm)
    check_lanes(quantizer, numbers(2**20 + 3), KEYS["independent"], lanes_for(quantizer, 6), 6)
