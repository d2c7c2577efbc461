"""Checks of arguments: what counts as a number, and how errors name the argument."""

import math

import pytest

from haystack_distill import DistilError
from haystack_distill.utils.checks import check_argument, check_type, is_integer, is_number, require_seed


def test_numbers() -> None:
    assert is_integer(-3)
    assert is_integer(1, 1)
    assert not any(is_integer(value) for value in (True, 1.0, "1", None))
    assert not is_integer(0, 1)
    assert all(is_number(value) for value in (0, -1.5))
    assert not any(is_number(value) for value in (True, "1", None, math.nan, math.inf))


def test_errors_name_the_argument() -> None:
    check_argument("n", 1, True, "at least 1")
    with pytest.raises(DistilError, match=r"^n must be at least 1, not 0$"):
        check_argument("n", 0, False, "at least 1")
    check_type("settings", None, dict)
    check_type("settings", {}, dict)
    with pytest.raises(DistilError, match=r"^settings must be a dict, or None for the defaults, not \[\]$"):
        check_type("settings", [], dict)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, "1", True, None])
def test_seeds_that_a_library_refuses(seed: object) -> None:
    require_seed(0)
    require_seed(2**32 - 1)
    with pytest.raises(DistilError, match=r"^seed must be a whole number from 0 to 4294967295, not"):
        require_seed(seed)
