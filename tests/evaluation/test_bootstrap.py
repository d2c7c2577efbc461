"""The paired bootstrap against cases whose result is known."""

import numpy as np
import pytest

from haystack_distill import DistilError
from haystack_distill.evaluation.bootstrap import paired_bootstrap


def test_no_difference_and_a_constant_one() -> None:
    scores = [[0.0, 100.0, 40.0, 60.0]]
    same = paired_bootstrap(scores, scores)
    assert (same.difference, same.low, same.high) == (0, 0, 0)
    higher = paired_bootstrap([[value + 2 for value in scores[0]]], scores)
    assert (higher.difference, higher.low, higher.high) == pytest.approx((2, 2, 2))


def test_one_seed_is_the_normal_interval_of_the_paired_differences() -> None:
    rng = np.random.default_rng(1)
    baseline = rng.normal(50, 30, size=2000)
    differences = rng.normal(1, 10, size=2000)
    found = paired_bootstrap([baseline + differences], [baseline], samples=4000)
    error = 1.96 * differences.std() / np.sqrt(2000)
    assert found.difference == pytest.approx(differences.mean())
    assert found.low == pytest.approx(found.difference - error, abs=0.05)
    assert found.high == pytest.approx(found.difference + error, abs=0.05)
    assert paired_bootstrap([baseline + differences], [baseline], samples=4000) == found  # the draws have a seed


def test_seeds_that_differ_widen_the_interval() -> None:
    """Constant scores a seed: only the draw of seeds varies, of three the mean is between the lowest and the highest."""
    baseline = np.zeros((1, 50))
    seeds = np.array([0.0, 3.0, 6.0])[:, None] + np.zeros((3, 50))
    found = paired_bootstrap(seeds, baseline, confidence=0.99)
    assert (found.difference, found.low, found.high) == (3, 0, 6)
    assert found.confidence == 0.99
    opposite = paired_bootstrap(baseline, seeds, confidence=0.99)
    assert (opposite.difference, opposite.low, opposite.high) == (-3, -6, 0)


def test_refusals() -> None:
    with pytest.raises(DistilError, match="3 and 2 questions; measure both"):
        paired_bootstrap([[1, 2, 3]], [[1, 2]])
    for wrong in ([], [[]], [1.0, 2.0]):
        with pytest.raises(DistilError, match="lists of lists"):
            paired_bootstrap(wrong, [[1.0]])  # type: ignore[arg-type]
    with pytest.raises(DistilError, match="confidence must be"):
        paired_bootstrap([[1.0]], [[1.0]], confidence=95)
    with pytest.raises(DistilError, match="samples must be"):
        paired_bootstrap([[1.0]], [[1.0]], samples=0)
