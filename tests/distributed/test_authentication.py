"""Frames and proofs of those who share a secret."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdat.distributed.authentication import (
    LONGEST_FRAME,
    FrameReader,
    FrameWriter,
    Handshake,
    Refused,
    decode,
    encode,
)

SECRET = b"the secret of a test"


@pytest.mark.parametrize("values", [[], [b""], [b"a", b"", b"\0" * 1000]])
def test_messages_are_read_as_they_were_written(values):
    assert decode(encode({"a": ["b", None, 2]}, values)) == ({"a": ["b", None, 2]}, values)


@given(st.lists(st.binary(max_size=100), max_size=5), st.data())
def test_frames_arrive_in_parts_and_one_by_one(payloads, data):
    writer, reader = FrameWriter(b"key"), FrameReader(b"key")
    stream = b"".join(writer.frame(payload) for payload in payloads)
    read = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        read += reader.feed(stream[:cut])
        stream = stream[cut:]
    assert read == payloads


def of_another_key(frames):
    return [FrameWriter(b"other").frame(b"0")]


def changed(frames):
    return [frames[0][:-1] + b"x"]


@pytest.mark.parametrize(
    "attack",
    [
        of_another_key,
        changed,
        lambda frames: [frames[0], frames[0]],
        lambda frames: [frames[1]],
        lambda frames: [struct.pack(">I32s", LONGEST_FRAME + 1, bytes(32))],
    ],
    ids=["another key", "changed", "repeated", "left out", "too long"],
)
def test_frames_that_the_other_end_has_not_written_are_refused(attack):
    writer = FrameWriter(b"key")
    frames = [writer.frame(bytes([48 + number])) for number in range(2)]
    with pytest.raises(Refused):
        list(FrameReader(b"key").feed(b"".join(attack(frames))))


def test_each_proof_and_key_is_of_one_use():
    """Rank, direction, nonces and secret: nothing that one of them is for can serve for another."""
    handshakes = [Handshake(SECRET, 1, b"a" * 32, b"b" * 32), Handshake(SECRET, 2, b"a" * 32, b"b" * 32)]
    handshakes += [Handshake(SECRET, 1, b"b" * 32, b"a" * 32), Handshake(b"other", 1, b"a" * 32, b"b" * 32)]
    codes = {
        code()
        for one in handshakes
        for code in (one.server_proof, one.worker_proof, one.from_server, one.from_worker)
    }
    assert len(codes) == 16
