"""The quantizer and every protocol in NumPy, by their definitions: no packing, no network."""

import numpy as np
import torch

from hpcdat.seeds import derive

F = np.float32


def uniform(count, key):
    """Keyed hashes of 0, ..., count - 1 as numbers in [0, 1)."""
    with np.errstate(over="ignore"):
        k0, k1 = (np.uint32((key >> shift) & 0xFFFFFFFF) for shift in (0, 32))
        x = np.arange(count, dtype=np.uint32) + k0
        x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
        x = (x ^ (x >> np.uint32(15)) ^ k1) * np.uint32(0x846CA68B)
        x = x ^ (x >> np.uint32(16))
    return (x >> np.uint32(8)).astype(F) * F(2.0**-24)


def place_of(rank, workers, key):
    """The place of one worker in the permutation that sorts hashes of 0, ..., M - 1."""
    return int(np.argsort(uniform(workers, key), kind="stable")[rank])


def correlated(count, own, shift, place, workers):
    """(pi(i) + gamma_i) / M, where pi(i) is the place plus a random shift, modulo M."""
    stratum = (np.floor(uniform(count, shift) * F(workers)).astype(int) + place) % workers
    return (stratum.astype(F) + uniform(count, own)) / F(workers)


def hadamard(x):
    """The Hadamard matrix times the last dimension, by its recursive definition."""
    if x.shape[-1] == 1:
        return x
    a, b = (hadamard(half) for half in np.split(x, 2, -1))
    return np.concatenate([a + b, a - b], -1)


def sum_by_halves(x, size):
    """The sum over the last dimension of up to ``size`` numbers, a power of two, missing ones as zeros."""
    if size == 1:
        return x[..., 0]
    first, second = x[..., : size // 2], x[..., size // 2 :]
    total = first.copy()
    total[..., : second.shape[-1]] += second
    return sum_by_halves(total, size // 2)


class Grid:
    """2 s + 1 points on a block's norm (two points for one bit)."""

    def __init__(self, bits, block, levels=None, norm="max", rotation="none"):
        self.s = F(levels or (2 ** (bits - 1) - 1 if bits > 1 else 0.5))
        self.block, self.norm, self.rotation = block, norm, rotation

    def blocks(self, x):
        size = min(self.block or x.shape[-1], x.shape[-1])
        missing = -x.shape[-1] % size
        padded = np.concatenate([x, np.zeros((*x.shape[:-1], missing), x.dtype)], -1)
        return padded.reshape(*x.shape[:-1], -1, size)

    def norms(self, x):
        if self.block is None:
            return np.full((*x.shape[:-1], 1), self.norm_of(x.flatten()), F)
        return self.norm_of(self.blocks(x))

    def norm_of(self, x):
        if self.norm == "max":
            return np.abs(x).max(-1)
        if self.block and self.block.bit_count() == 1:
            return np.sqrt(sum_by_halves(x * x, self.block))
        # NumPy would add the squares in another order.
        return torch.linalg.vector_norm(torch.from_numpy(x), dim=-1).numpy()

    def codes(self, x, norms, key):
        blocks = self.blocks(x)
        scale = np.where(norms > 0, norms, F(np.inf))[..., None]
        place = blocks / scale * self.s
        shift = F(0.5) if self.s == 0.5 else F(0)
        below = np.floor(place + shift)
        draws = correlated(blocks.size, *key) if isinstance(key, tuple) else uniform(blocks.size, key)
        up = draws.reshape(blocks.shape) < (place + shift) - below
        return np.clip(below + up + (self.s if shift == 0 else F(0)), 0, 2 * self.s).astype(np.int64)

    def values(self, codes, norms, workers=1, count=None):
        numbers = (codes.astype(F) - F(workers) * self.s) * (norms / self.s)[..., None]
        return numbers.reshape(*codes.shape[:-2], -1)[..., :count]

    def message(self, x, key):
        """The numbers, rotated if the grid is, that the codes stand for."""
        x = self.rotated(x)
        norms = self.norms(x)
        return self.values(self.codes(x, norms, key), norms, count=x.shape[-1])

    def rotated(self, x):
        return self.in_whole_blocks(x, lambda blocks: hadamard(blocks * self.signs) * self.scale)

    def back(self, x):
        return self.in_whole_blocks(x, lambda blocks: hadamard(blocks) * (self.signs * self.scale))

    def in_whole_blocks(self, x, change):
        if self.rotation == "none":
            return x
        whole = x.shape[-1] // self.block * self.block
        blocks = x[..., :whole].reshape(*x.shape[:-1], -1, self.block)
        return np.concatenate([change(blocks).reshape(*x.shape[:-1], whole), x[..., whole:]], -1)

    @property
    def signs(self):
        return np.where(uniform(self.block, derive(0, "signs of a rotation")) < 0.5, F(-1), F(1))

    @property
    def scale(self):
        return F(self.block**-0.5)


class Float:
    """A floating-point format; bfloat16 by its definition, rounding to nearest even."""

    def __init__(self, name):
        self.name, self.block = name, 1

    def message(self, x, key):
        if self.name == "bfloat16":
            bits = x.view(np.uint32)
            return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(F)
        return x.astype(self.name).astype(F)

    def back(self, x):
        return x


def expected(settings, vectors, residuals, *, step, bucket, block=64):
    """The sum that every worker must receive.

    Args:
        settings: of the exchange.
        vectors: of the workers.
        residuals: of the workers' error feedback, dictionaries by side; updated.
        step, bucket: of the draw, with seed 5 and epoch 1.
    """
    size, count, bits = len(vectors), len(vectors[0]), settings["bits"]
    coded = bits not in (32, "float16")
    block = None if settings.get("block") in ("bucket", "tensor") else block
    levels = settings.get("levels")
    if "lane_bits" in settings:
        levels = min((2 ** settings["lane_bits"] - 1) // (2 * size), 2 ** (bits - 1) - 1)
    send = (
        Grid(bits, block, levels, settings.get("norm", "max"), settings.get("rotation", "none"))
        if coded
        else Float("float32" if bits == 32 else "float16")
    )
    sum_codec = send if settings.get("two_sided") else Float(settings.get("sum_format", "float32"))

    def derived(what, *rank):
        return derive(5, f"quantizer {what}", 1, step, bucket, *rank)

    def key(side, rank):
        if side == "worker" and settings.get("rounding") == "correlated":
            place = place_of(rank, size, derived("permutation"))
            return derived(side, rank), derived("shift"), place, size
        return derived(side, rank)

    def message(side, rank, x, codec):
        """What a message of x, with error feedback, holds."""
        if side in residuals[rank]:
            x = x + residuals[rank][side]
        sent = codec.message(x, key(side, rank))
        if coded:
            residuals[rank][side] = x - codec.back(sent)
        return sent

    protocol = settings["protocol"]
    if protocol == "ring":
        if not coded:
            total = send.message(vectors[0], 0)
            for x in vectors[1:]:
                total = send.message(total + send.message(x, 0), 0)
            return total
        fed = [x + residuals[rank].get("worker", F(0)) for rank, x in enumerate(vectors)]
        rotated = [send.rotated(x) for x in fed]
        norms = np.max([send.norms(x) for x in rotated], axis=0)
        codes = [send.codes(x, norms, key("worker", rank)) for rank, x in enumerate(rotated)]
        for rank, (x, code) in enumerate(zip(fed, codes, strict=True)):
            residuals[rank]["worker"] = x - send.back(send.values(code, norms, count=count))
        return send.back(send.values(np.sum(codes, axis=0), norms, size, count))
    if protocol == "allgather":
        return send.back(added([message("worker", rank, x[None], send)[0] for rank, x in enumerate(vectors)]))
    if protocol == "parameter_server":
        total = added([message("worker", rank, x[None], send)[0] for rank, x in enumerate(vectors)])
        return sum_codec.back(message("server", 0, send.back(total)[None], sum_codec)[0])
    whole = size * max(send.block or 1, sum_codec.block or 1)
    missing = -count % (whole if count > whole - size else size)
    rows = [np.concatenate([x, np.zeros(missing, F)]).reshape(size, -1) for x in vectors]
    sent = [message("worker", rank, row, send) for rank, row in enumerate(rows)]
    shards = [
        sum_codec.back(message("server", rank, send.back(added([s[rank] for s in sent]))[None], sum_codec)[0])
        for rank in range(size)
    ]
    return np.concatenate(shards)[:count]


def added(vectors):
    """One after the other, in float32."""
    total = vectors[0]
    for x in vectors[1:]:
        total = total + x
    return total
