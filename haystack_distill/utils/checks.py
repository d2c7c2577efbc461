"""Checks of arguments: what is wrong is said where it is given, in one sentence that names the argument."""

import math
from numbers import Real
from typing import Any, TypeGuard

from haystack_distill.errors import DistilError


def check_argument(name: str, value: Any, right: bool, wanted: str) -> None:
    """Raise a DistilError that names an argument unless its value is right."""
    if not right:
        raise DistilError(f"{name} must be {wanted}, not {value!r}")


def is_integer(value: Any, minimum: int | None = None) -> TypeGuard[int]:
    """Whether a value is an integer, and not below `minimum`; True and False do not count."""
    return isinstance(value, int) and not isinstance(value, bool) and (minimum is None or value >= minimum)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number; True and False are none, nor is text."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_type(name: str, value: Any, kind: type) -> None:
    """Raise a DistilError that names an argument unless its value is None or of a class."""
    check_argument(
        name, value, value is None or isinstance(value, kind), f"a {kind.__name__}, or None for the defaults"
    )


PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def require_seed(seed: Any) -> None:
    """Check that every library takes a seed.

    Raises:
        DistilError: One does not; NumPy takes none below 0 and none of more than 32 bits.
    """
    check_argument("seed", seed, is_integer(seed, 0) and seed < 2**32, "a whole number from 0 to 4294967295")
