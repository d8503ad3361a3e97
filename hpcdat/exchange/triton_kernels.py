"""Triton kernels of the codec; :mod:`~hpcdat.exchange.triton_codec` starts them.

A program works on a tile of TILE blocks of BLOCK numbers each, (TILE, BLOCK). Parameters in capitals are
constants of the compiled kernel, lengths are those of one row. In a row of words, word ``unit`` holds the
codes of the coordinates unit, unit + chunk, unit + 2 chunk and so on, as :mod:`~hpcdat.exchange.bit_packing`
has it.

Triton compiles a kernel for each combination of lengths that are divisible by 16, but for those named in
``do_not_specialize``.
"""

import triton
import triton.language as tl


@triton.jit
def _hash(index, low, high):
    x = index + low
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15) ^ high) * 0x846CA68B
    x = x ^ (x >> 16)
    return (x >> 8).to(tl.float32) * 5.9604644775390625e-08  # 2^-24


@triton.jit
def _uniform(index, key, CORRELATED: tl.constexpr):
    """:func:`~hpcdat.exchange.counter_rng.uniform` at the given indices, uint32."""
    numbers = _hash(index, tl.load(key).to(tl.uint32), tl.load(key + 1).to(tl.uint32))
    if CORRELATED:
        workers = tl.load(key + 5).to(tl.float32)
        shift = _hash(index, tl.load(key + 2).to(tl.uint32), tl.load(key + 3).to(tl.uint32))
        stratum = tl.floor(shift * workers) + tl.load(key + 4).to(tl.float32)
        stratum = tl.where(stratum < workers, stratum, stratum - workers)
        numbers = tl.div_rn(stratum + numbers, workers)
    return numbers


@triton.jit
def _norm(x, L2: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, HALVINGS: tl.constexpr):
    """Norms of the rows of (TILE, BLOCK) numbers: (TILE,)."""
    if L2:
        squares = x * x
        for halving in tl.static_range(HALVINGS):
            # A sum of two numbers has one order only.
            squares = tl.sum(tl.reshape(squares, [TILE, 2, BLOCK >> (halving + 1)]), 1)
        norm = tl.sqrt_rn(tl.reshape(squares, [TILE]))
    else:
        # As integers, magnitudes have the same order, and NaN is the largest.
        magnitudes = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        norm = tl.max(magnitudes, 1).to(tl.float32, bitcast=True)
    return norm


@triton.jit
def _round_at_random(x, norm, uniform, S: tl.constexpr):
    """:func:`~hpcdat.exchange.quantizer.round_at_random`: codes 0 to 2 S, float32."""
    scale = tl.where(norm > 0, norm, float("inf"))
    place = tl.div_rn(x, scale) * S
    if S == 0.5:
        place = place + 0.5
    below = tl.floor(place)
    code = below + tl.where(uniform < place - below, 1.0, 0.0)
    if S != 0.5:
        code = code + S
    # NaN is not larger than 0 either.
    code = tl.where(code > 0, code, 0.0)
    return tl.where(code < 2 * S, code, 2.0 * S)


@triton.jit
def norms(
    x,
    norms,
    count,
    blocks,
    L2: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    HALVINGS: tl.constexpr,
):
    """Norms alone."""
    block = tl.program_id(0) * TILE + tl.arange(0, TILE)
    at = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    row = tl.program_id(1).to(tl.int64)
    numbers = tl.load(x + row * count + at, mask=at < count, other=0.0)
    norm = _norm(numbers, L2, TILE, BLOCK, HALVINGS)
    tl.store(norms + row * blocks + block, norm, mask=block < blocks)


@triton.jit(do_not_specialize=["blocks", "indices"])
def encode(
    x,
    norms,
    words,
    key,
    count,
    blocks,
    indices,
    chunk,
    size,
    start,
    S: tl.constexpr,
    L2: tl.constexpr,
    CORRELATED: tl.constexpr,
    OWN_NORMS: tl.constexpr,
    ALIGNED: tl.constexpr,
    UNITS: tl.constexpr,
    WORD: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNKS: tl.constexpr,
    PLANES: tl.constexpr,
    OFFSET: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    HALVINGS: tl.constexpr,
):
    """Words unit = 0, 1, ... of a row: the codes of coordinates unit, unit + chunk, unit + 2 chunk, ..."""
    row = tl.program_id(1).to(tl.int64)
    x += row * count
    norms += row * size
    # As multiples, so that the compiler knows the alignment.
    words += (row * size + start) * UNITS
    tile = tl.program_id(0) * TILE + tl.arange(0, TILE)
    lane = tl.arange(0, BLOCK)[None, :]
    unit = tile[:, None] * BLOCK + lane
    word = tl.full([TILE, BLOCK], 0, WORD)
    for part in range(CHUNKS):
        at = part * chunk + unit
        # The coordinates of a row of the tile are in this block and, after the border, in the next one.
        block, border = part * chunk // BLOCK + tile, BLOCK - part * chunk % BLOCK
        inside = (unit < chunk) & (at < count)
        numbers = tl.load(x + at, mask=inside, other=0.0)
        if OWN_NORMS:
            if ALIGNED:
                norm = _norm(numbers, L2, TILE, BLOCK, HALVINGS)
                tl.store(norms + block, norm, mask=(tile * BLOCK < chunk) & (block < blocks))
            else:
                whole = block[:, None] * BLOCK + lane
                own = tl.load(x + whole, mask=whole < count, other=0.0)
                following = tl.load(x + whole + BLOCK, mask=whole + BLOCK < count, other=0.0)
                norm = _norm(own, L2, TILE, BLOCK, HALVINGS)
                following_norm = _norm(following, L2, TILE, BLOCK, HALVINGS)
                # Another program may store the same norm.
                tl.store(norms + block, norm, mask=block < blocks)
                tl.store(norms + block + 1, following_norm, mask=block + 1 < blocks)
        else:
            norm = tl.load(norms + block, mask=block < blocks, other=0.0)
            if not ALIGNED:
                following_norm = tl.load(norms + block + 1, mask=block + 1 < blocks, other=0.0)
        norm = norm[:, None]
        if not ALIGNED:
            norm = tl.where(lane < border, norm, following_norm[:, None])
        index = tl.program_id(1).to(tl.uint32) * indices + at.to(tl.uint32)
        code = _round_at_random(numbers, norm, _uniform(index, key, CORRELATED), S).to(tl.int32) - OFFSET
        word |= tl.where(inside, code, 0).to(WORD) << (WIDTH * part)
    for plane in tl.static_range(PLANES):
        # Zeros fill up the message.
        units = chunk if plane < PLANES - 1 else (size - start) * UNITS - plane * chunk
        value = (word >> (8 * plane)).to(words.dtype.element_ty)
        tl.store(words + plane * chunk + unit, value, mask=unit < units)


@triton.jit(do_not_specialize=["blocks"])
def decode(
    words,
    norms,
    numbers,
    count,
    blocks,
    summands,
    chunk,
    size,
    start,
    S: tl.constexpr,
    CENTRE: tl.constexpr,
    ALIGNED: tl.constexpr,
    UNITS: tl.constexpr,
    WORD: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNKS: tl.constexpr,
    PLANES: tl.constexpr,
    OFFSET: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A row of numbers, each the sum over ``summands`` messages."""
    row = tl.program_id(1).to(tl.int64)
    tile = tl.program_id(0) * TILE + tl.arange(0, TILE)
    lane = tl.arange(0, BLOCK)[None, :]
    unit = tile[:, None] * BLOCK + lane
    for part in range(CHUNKS):
        at = part * chunk + unit
        block, border = part * chunk // BLOCK + tile, BLOCK - part * chunk % BLOCK
        inside = (unit < chunk) & (at < count)
        total = tl.full([TILE, BLOCK], 0.0, tl.float32)
        for summand in range(summands):
            message = row * summands + summand
            of_message = norms + message * size + block
            step = tl.div_rn(tl.load(of_message, mask=block < blocks, other=0.0), S)[:, None]
            if not ALIGNED:
                following = tl.load(of_message + 1, mask=block + 1 < blocks, other=0.0)
                step = tl.where(lane < border, step, tl.div_rn(following, S)[:, None])
            source = words + (message * size + start) * UNITS + unit
            word = tl.load(source, mask=inside, other=0).to(WORD)
            for plane in tl.static_range(1, PLANES):
                word |= tl.load(source + plane * chunk, mask=inside, other=0).to(WORD) << (8 * plane)
            if CHUNKS > 1:
                word = (word >> (WIDTH * part)) & ((1 << WIDTH) - 1)
            code = word.to(tl.int32) + OFFSET
            number = (code.to(tl.float32) - CENTRE) * step
            # Not 0 + number, which would turn -0 into 0.
            total = tl.where(summand == 0, number, total + number)
        tl.store(numbers + row * count + at, total, mask=inside)
