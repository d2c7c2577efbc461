"""Reliability of scores: bins by hand, and the expected calibration error."""

import pytest

from haystack_distill.evaluation.measurements import ExampleResult
from haystack_distill.evaluation.reliability import Bin, calibration_error, reliability


def test_calibration_by_hand() -> None:
    results = [ExampleResult("a", "", s, e, e) for s, e in ((0.0, 0), (0.06, 1), (0.55, 1), (1.0, 1))]
    assert reliability(results) == [
        Bin(pytest.approx(0.03), 0.5, 2),
        Bin(0.55, 1.0, 1),
        Bin(1.0, 1.0, 1),
    ]
    assert calibration_error(results) == pytest.approx((2 * 0.47 + 0.45 + 0) / 4)
    assert calibration_error([ExampleResult("a", "", 1.0, 1.0, 1.0)]) == 0
