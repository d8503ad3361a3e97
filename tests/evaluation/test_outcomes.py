"""Outcomes of batches, merged."""

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hpcdat.evaluation.outcomes import Outcomes, merge


def outcomes(text, warnings=()):
    flags = np.array([int(c) for c in text], bool)
    return Outcomes({"correct": flags, "robust": flags & (np.arange(len(flags)) % 2 == 0)}, tuple(warnings))


@given(st.lists(st.text("01", min_size=1, max_size=5), min_size=1, max_size=6), st.randoms())
def test_batches_are_merged_in_order_whoever_measured_them(texts, random):
    batches = [(number, outcomes(text)) for number, text in enumerate(texts)]
    random.shuffle(batches)
    merged = merge(dict(batches))
    assert merged.columns["correct"].tolist() == [c == "1" for c in "".join(texts)]
    assert merged.images == sum(map(len, texts)) and merged.count("correct") == "".join(texts).count("1")


def test_merged_warnings_have_no_duplicates():
    merged = merge({0: outcomes("1", ["b"]), 1: outcomes("0", ["a", "b"])})
    assert merged.warnings == ("a", "b")


@given(st.text("01", min_size=1))
def test_from_json_is_the_inverse_of_to_json(text):
    value = outcomes(text, ["a"]).to_json()
    back = Outcomes.from_json(json.loads(json.dumps(value)))
    assert back.to_json() == value and back.columns["correct"].tolist() == [c == "1" for c in text]
