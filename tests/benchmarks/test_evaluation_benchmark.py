"""benchmarks/evaluation.py compares medians of both ways."""

from importlib import import_module


def test_ratios_are_medians_with_folding_over_medians_without(modules):
    evaluation = import_module("evaluation")
    folded = {"PGD-50, folded": [1, 9, 2], "AutoAttack, folded": [6], "certification, folded": [1]}
    plain = {"PGD-50, plain": [4, 4, 8], "AutoAttack, plain": [3], "certification, plain": [5]}
    assert evaluation.concluded(folded | plain) == {
        "pgd50_over_plain": 0.5,
        "autoattack_over_plain": 2,
        "certification_over_plain": 0.2,
    }
