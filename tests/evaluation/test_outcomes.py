"""Outcomes of images: kept by batch, merged whoever measured them."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdat.evaluation.outcomes import Outcomes, Shelf, merge


def outcomes(text, remarks=()):
    flags = np.array([int(c) for c in text], bool)
    return Outcomes({"correct": flags, "robust": flags & (np.arange(len(flags)) % 2 == 0)}, tuple(remarks))


def same(one, other):
    return one.to_json() == other.to_json()


@given(st.lists(st.text("01", min_size=1, max_size=5), min_size=1, max_size=6), st.randoms())
def test_batches_are_merged_in_their_order_whoever_brings_them(texts, random):
    batches = [(number, outcomes(text)) for number, text in enumerate(texts)]
    random.shuffle(batches)
    merged = merge(dict(batches))
    assert merged.columns["correct"].tolist() == [c == "1" for c in "".join(texts)]
    assert merged.images == sum(map(len, texts)) and merged.count("correct") == "".join(texts).count("1")


def test_remarks_are_told_once():
    merged = merge({0: outcomes("1", ["b"]), 1: outcomes("0", ["a", "b"])})
    assert merged.remarks == ("a", "b")


@given(st.text("01", min_size=1))
def test_what_is_kept_comes_back(text):
    assert same(Outcomes.from_json(json.loads(json.dumps(outcomes(text).to_json()))), outcomes(text))


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", "[1]", '{"columns": {"correct": "0'),
        '{"columns": {"correct": "01", "robust": "0"}, "remarks": []}',
        '{"columns": {"correct": "0", "robust": "0"}, "remarks": []}',
        '{"columns": {"correct": "000", "robust": "000"}, "remarks": []}',
        '{"columns": {"correct": "05", "robust": "00"}, "remarks": []}',
        '{"columns": {"correct": "00"}, "remarks": []}',
        '{"columns": {"correct": "00", "steady": "00"}, "remarks": []}',
        '{"columns": {"correct": "00", "robust": "00"}, "remarks": [1]}',
    ],
)
def test_a_damaged_file_counts_as_missing(tmp_path, text):
    shelf = Shelf(tmp_path / "made" / "here")
    shelf.make({"seed": 0})
    shelf.write(3, outcomes("011"))
    shelf.write(4, outcomes("01"))
    (shelf.folder / "batch-00004.json").write_text(text)
    found = shelf.read({number: 2 if number == 4 else 3 for number in range(9)}, ["correct", "robust"])
    assert list(found) == [3] and same(found[3], outcomes("011"))


def test_a_batch_of_fewer_images_is_taken_where_some_may_be_left_out(tmp_path):
    shelf, columns = Shelf(tmp_path), ["correct", "robust"]
    shelf.write(0, outcomes("01"))
    assert list(shelf.read({0: 2}, columns)) == list(shelf.read({0: 3}, columns, fewer=True)) == [0]
    assert not shelf.read({0: 3}, columns) and not shelf.read({0: 1}, columns, fewer=True)


def test_what_killed_writes_have_left_is_cleared_away(tmp_path):
    shelf = Shelf(tmp_path)
    shelf.write(0, outcomes("1"))
    (tmp_path / ".batch-00001.json-abc").write_text("{")
    shelf.make({})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["batch-00000.json", "settings.json"]
