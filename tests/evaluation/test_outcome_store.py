"""Outcomes on disk: interrupted at any byte, damaged, and of other weights."""

import json
from pathlib import Path

import pytest

from hpcdat.evaluation.outcome_store import OutcomeStore, StoredOutcome

OUTCOMES = {number: StoredOutcome(images=2, value={"flags": f"{number:02b}"}) for number in range(8)}


class Warnings(list):
    """Warnings of the last load of a store."""

    def load(self, store):
        self.clear()
        return store.load(self.append)


@pytest.fixture
def warnings():
    return Warnings()


def store(folder, **key):
    return OutcomeStore(folder, "accuracy", {"weights": "abc", **key})


def part(one, rank):
    return Path(f"{one.path}.part-{rank}")


def filled(folder):
    """A store that one worker filled, without interruption."""
    one = store(folder)
    assert one.load(pytest.fail) == {}
    for number, outcome in OUTCOMES.items():
        one.append(number, outcome, 0)
    one.write(OUTCOMES)
    return one


def test_outcomes_come_back(tmp_path, warnings):
    one = filled(tmp_path / "made" / "here")
    before = one.path.stat().st_mtime_ns
    assert warnings.load(store(tmp_path / "made" / "here")) == OUTCOMES and warnings == []
    assert one.path.stat().st_mtime_ns == before and list(one.folder.iterdir()) == [one.path]


def test_appended_outcomes_are_merged_to_the_same_bytes_whoever_measured_them(tmp_path, warnings):
    whole = filled(tmp_path / "one").path.read_bytes()
    several = store(tmp_path / "several")
    several.load(pytest.fail)
    for number in (5, 2, 7, 0, 3, 6, 1, 4):
        several.append(number, OUTCOMES[number], rank=number % 3)
    assert warnings.load(several) == OUTCOMES and warnings == []
    assert several.path.read_bytes() == whole and list(several.folder.iterdir()) == [several.path]


def test_a_kill_at_any_byte_loses_only_the_line_at_hand(tmp_path, warnings):
    """Two workers were killed while they appended; some batches had been merged before."""
    one = filled(tmp_path)
    key, *lines = one.path.read_bytes().splitlines(keepends=True)
    shares = [b"".join(lines[rank:6:2]) for rank in (0, 1)]
    for size in range(len(shares[0]) + 1):
        one.path.write_bytes(key + b"".join(lines[6:]))
        for rank in (0, 1):
            part(one, rank).write_bytes(shares[rank][:size])
        whole_lines = [shares[rank][:size].count(b"\n") for rank in (0, 1)]
        expected = {2 * n + rank for rank in (0, 1) for n in range(whole_lines[rank])} | {6, 7}
        assert warnings.load(store(tmp_path)) == {number: OUTCOMES[number] for number in expected}
        assert warnings == [] and list(tmp_path.iterdir()) == [one.path]
        one.write({**OUTCOMES})
        assert one.path.read_bytes() == key + b"".join(lines)


def test_what_a_killed_write_left_is_removed(tmp_path):
    one = filled(tmp_path)
    (tmp_path / f".{one.path.name}-abc").write_text("{")
    one.write(OUTCOMES)
    assert list(tmp_path.iterdir()) == [one.path]


@pytest.mark.parametrize("position", range(60))
def test_a_damaged_byte_costs_one_batch_and_is_mentioned(tmp_path, warnings, position):
    """Whichever byte of whichever line: a digit that became another one included."""
    one = filled(tmp_path)
    whole = one.path.read_bytes()
    start = whole.index(b"\n") + 1
    damaged = start + position * (len(whole) - start) // 60
    one.path.write_bytes(whole[:damaged] + bytes([whole[damaged] ^ 1]) + whole[damaged + 1 :])
    found = warnings.load(store(tmp_path))
    assert all(OUTCOMES[number] == outcome for number, outcome in found.items())
    # A damaged line break damages two lines, at the end of the file one.
    assert len(found) >= 6 and len(found) < 8
    assert len(warnings) == 1 and "damaged" in warnings[0] and str(one.path) in warnings[0]
    # The damage is gone.
    assert warnings.load(store(tmp_path)) == found and warnings == []


def test_a_damaged_key_costs_all(tmp_path, warnings):
    one = filled(tmp_path)
    whole = one.path.read_bytes()
    one.path.write_bytes(whole.replace(b"abc", b"abd", 1))
    assert warnings.load(store(tmp_path)) == {}
    assert warnings == [f"{one.path}: 9 lines are damaged; measuring their batches again"]
    one.path.write_bytes(b"\x80")
    assert warnings.load(store(tmp_path)) == {} and len(warnings) == 1


def test_outcomes_of_other_weights_are_mentioned_and_preserved(tmp_path, warnings):
    """Of other weights, and of a version with one file per batch."""
    other = filled(tmp_path)
    assert warnings.load(store(tmp_path, weights="def")) == {}
    assert len(warnings) == 1 and "measuring all" in warnings[0]
    assert warnings.load(store(tmp_path, weights="def")) == {} and warnings == []
    assert warnings.load(other) == OUTCOMES
    old = tmp_path / "old"
    (old / "accuracy-12345678").mkdir(parents=True)
    (old / "accuracy-12345678" / "batch-00000.json").write_text("{}")
    assert warnings.load(store(old)) == {} and "measuring all" in warnings[0]


def test_the_first_line_says_what_the_outcomes_are_of(tmp_path):
    first = filled(tmp_path).path.read_text().splitlines()[0]
    assert json.loads(first) == {"format": 1, "weights": "abc"}
