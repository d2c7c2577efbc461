"""Checks of arguments, with errors that name the argument."""

import math
from numbers import Real
from typing import Any, Literal, TypeGuard, get_args

from haystack_distill.errors import DistilError


def check_argument(name: str, value: Any, valid: bool, expected: str) -> None:
    """Check that an argument is valid.

    Raises:
        DistilError: It is not; the message is "`name` must be `expected`, not `value`".
    """
    if not valid:
        raise DistilError(f"{name} must be {expected}, not {value!r}")


def is_integer(value: Any, minimum: int | None = None) -> TypeGuard[int]:
    """Whether a value is an integer, and not below `minimum`; True and False do not count."""
    return isinstance(value, int) and not isinstance(value, bool) and (minimum is None or value >= minimum)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number; True and False do not count."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_type(name: str, value: Any, kind: type) -> None:
    """Check that an argument is None or an instance of a class.

    Raises:
        DistilError: It is neither.
    """
    check_argument(
        name, value, value is None or isinstance(value, kind), f"a {kind.__name__}, or None for the defaults"
    )


Precision = Literal["auto", "fp32", "bf16", "fp16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


def require_seed(seed: Any) -> None:
    """Check that a seed is one that every library accepts.

    Raises:
        DistilError: It is not; NumPy accepts 32 bits and no negative numbers.
    """
    check_argument("seed", seed, is_integer(seed, 0) and seed < 2**32, "a whole number from 0 to 4294967295")
