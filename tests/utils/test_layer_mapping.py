"""Layer mapping: evenly spread layers are rounded as fractions are, and the last is always among them."""

import math
from fractions import Fraction

import pytest

from haystack_distill.utils.layer_mapping import last_layers, uniform_layers


@pytest.mark.parametrize("n_teacher", range(1, 25))
def test_uniform_layers_are_rounded_half_up(n_teacher: int) -> None:
    for n_student in range(1, 25):
        exact = [Fraction(m * n_teacher, n_student) for m in range(1, n_student + 1)]
        layers = uniform_layers(n_student, n_teacher)
        assert layers == [max(1, math.floor(place + Fraction(1, 2))) for place in exact]
        assert layers[-1] == n_teacher
        if n_student <= n_teacher:
            assert len(set(layers)) == n_student


def test_published_mappings() -> None:
    assert uniform_layers(4, 12) == [3, 6, 9, 12]
    assert uniform_layers(6, 12) == [2, 4, 6, 8, 10, 12]
    assert last_layers(3, 12) == [10, 11, 12]
