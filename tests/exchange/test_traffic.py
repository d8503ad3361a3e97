"""Bytes on the network, by the paper's own table."""

import pytest
import torch

from hpcdat.config.sections import Exchange
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import InputError
from hpcdat.exchange.codecs import Cast, Quantized
from hpcdat.exchange.protocols import shard_length
from hpcdat.exchange.quantizer import Quantizer
from hpcdat.exchange.resolve import make_plan
from hpcdat.exchange.traffic import collectives, traffic

RESNET50 = 25_557_032
FLOAT = Cast(torch.float32)


def sent(protocol, count, workers, codec, sum_codec=FLOAT):
    return traffic(collectives(protocol, count, workers, codec, sum_codec), workers)


def mebibytes(protocol, codec, sum_codec=FLOAT):
    return sent(protocol, RESNET50, 6, codec, sum_codec).total / 2**20


@pytest.mark.parametrize("codec, paper", [(FLOAT, 2924), (16, 1462), (8, 731)])
def test_all_gather_of_table_4(codec, paper):
    """ResNet-50, M = 6, one norm for all: 30 vectors."""
    codec = Quantized(Quantizer(codec, block=None)) if isinstance(codec, int) else codec
    assert mebibytes("allgather", codec) == pytest.approx(paper, abs=1.0)


def test_two_sided_parameter_server_of_table_4():
    codec = Quantized(Quantizer(8, block=None))
    assert mebibytes("parameter_server", codec, codec) == pytest.approx(244, abs=0.5)


def test_a_ring_sends_two_vectors_less_a_share_from_each_worker():
    floats = sent("ring", 1000, 5, FLOAT)
    assert floats.total == 2 * 4 * 4000 and floats.busiest == pytest.approx(2 * 4 / 5 * 4000)
    lanes = sent("ring", 1024, 6, Quantized(Quantizer(8, levels=21)))
    assert lanes.total == 2 * 5 * (1024 + 2 * 4), "four lanes in four bytes, and a norm for each block"


def test_the_card_of_one_server_carries_what_all_send():
    busiest = sent("parameter_server", 1000, 6, FLOAT).busiest
    assert busiest == 5 * 4000 and sent("sharded_server", 1000, 6, FLOAT).busiest < busiest / 2


def test_the_server_sends_the_sum_once_in_each_round_of_the_tree():
    """6 workers: 3 rounds, of float32 sums, while 5 workers send it a byte for each of 1024 numbers."""
    codes = Quantized(Quantizer(8, block=None))
    one_sided = sent("parameter_server", 1024, 6, codes)
    assert one_sided.sent == one_sided.busiest == 3 * 4096
    assert one_sided.received == 5 * codes.message_bytes(1024) < one_sided.sent


@pytest.mark.parametrize("count", [1, 5, 6, 100, 3071, 3072, 3073, 100_000])
@pytest.mark.parametrize("block", [8, 512, 10_000_000])
def test_shards_of_a_server_are_filled_up_by_less_than_the_gradient(count, block):
    codec = Quantized(Quantizer(8, block=block))
    length = shard_length(count, 6, codec, FLOAT)
    assert count <= 6 * length < max(2 * count, count + 6)
    (codes, sums) = collectives("sharded_server", count, 6, codec, FLOAT)
    assert codes.size == 6 * codec.message_bytes(length) and sums.size == 4 * length
    assert shard_length(count, 6, FLOAT, FLOAT) == -(-count // 6)


def workers_of(size):
    workers = SingleProcess()
    workers.size = size
    return workers


def test_lanes_that_do_not_pay_are_reported_with_their_cost():
    assert make_plan(Exchange(bits=8), workers_of(6)).remark == ""
    assert (
        "takes 16.0 bits each, where sharded_server takes 8"
        in make_plan(Exchange(bits=8), workers_of(64)).remark
    )
    narrow = make_plan(Exchange(bits=8, lane_bits=8), workers_of(16))
    assert narrow.codec.quantizer.levels == 7 and "hold only 7 of 127 levels" in narrow.remark
    few = make_plan(Exchange(bits=8, lane_bits=8, levels=10), workers_of(6))
    assert few.codec.quantizer.s == 10 and few.remark == "", "lanes would hold 21"
    with pytest.raises(InputError, match=r"8 bits cannot hold the sum of 200 workers' codes: take 9 or more"):
        make_plan(Exchange(bits=8, lane_bits=8), workers_of(200))
