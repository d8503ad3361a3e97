"""Nothing is lost in packing, and sums of lanes do not carry."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcdat.exchange.bit_packing import Lanes, pack, packed_bytes, unpack


@given(st.integers(1, 8), st.integers(0, 70), st.integers(1, 3), st.integers(0, 2**32))
def test_packing_is_a_bijection_for_every_width_and_length(bits, count, rows, seed):
    codes = torch.randint(2**bits, (rows, count), generator=torch.Generator().manual_seed(seed))
    packed = pack(codes.to(torch.uint8), bits)
    assert packed.shape == (rows, packed_bytes(count, bits)) and packed.dtype == torch.uint8
    assert packed.shape[1] <= -(-count // 8) * bits
    assert torch.equal(unpack(packed, bits, count), codes.to(torch.uint8))


@given(st.integers(1, 300), st.integers(1, 16), st.integers(1, 50), st.integers(0, 2**32))
def test_sums_of_words_are_sums_of_codes(workers, bits, count, seed):
    largest = 2**bits - 1
    lanes = Lanes.for_sums_up_to(workers * largest)
    codes = torch.randint(largest + 1, (workers, count), generator=torch.Generator().manual_seed(seed))
    words = torch.stack([lanes.pack(row.to(torch.int32)) for row in codes])
    total = words.sum(0, dtype=lanes.word)
    assert torch.equal(lanes.unpack(total, count).to(torch.int64), codes.sum(0))


@pytest.mark.parametrize("workers, largest", [(1, 255), (6, 42), (2, 2**15), (3, 254), (5, 2**28), (8, 254)])
def test_lanes_that_are_full_do_not_carry(workers, largest):
    lanes = Lanes.for_sums_up_to(workers * largest)
    words = lanes.pack(torch.full((2 * lanes.count + 1,), largest, dtype=torch.int64))
    total = lanes.unpack((words * workers).to(lanes.word), 2 * lanes.count + 1)
    assert (total.to(torch.int64) == workers * largest).all()


@pytest.mark.parametrize(
    "workers, bits, cost", [(4, 4, 6.4), (16, 4, 8.0), (64, 4, 32 / 3), (8, 8, 12.8), (2, 8, 64 / 7)]
)
def test_bits_per_code_in_lanes(workers, bits, cost):
    assert Lanes.for_sums_up_to(workers * 2 * (2 ** (bits - 1) - 1)).bits_per_code == pytest.approx(cost)
