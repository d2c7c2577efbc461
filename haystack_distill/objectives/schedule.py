"""Weights of methods that change while a run lasts."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import TypeAlias

from haystack_distill.errors import DistilError
from haystack_distill.utils.checks import check_argument, is_number


@dataclass(frozen=True)
class Linear:
    """A weight that runs linearly over the optimiser steps of a run: `Linear(1.0, 0.0) * PredictionLayer()`.

    The weight at progress p, from 0 at the first step to 1 at the last, is start + (end - start) * p. It scales the
    configured weights of the method or objective that it is multiplied with; it does not replace them.

    Args:
        start: The weight in the first step, 0 or more.
        end: The weight in the last step, 0 or more.

    Raises:
        DistilError: An end is not a number of 0 or more, or both are the same.
    """

    start: float
    end: float

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            value = getattr(self, name)
            check_argument(name, value, is_number(value) and value >= 0, "a number of 0 or more")
        if self.start == self.end:
            raise DistilError(f"a weight from {self.start} to {self.end} does not change; give one number")

    def __mul__(self, factor: float) -> Linear:
        if not isinstance(factor, Real):
            return NotImplemented  # a method or an objective knows how to be multiplied with a weight
        return Linear(float(factor) * self.start, float(factor) * self.end)

    __rmul__ = __mul__


Weight: TypeAlias = float | Linear


def weight_at(weight: Weight, progress: float) -> float:
    """A weight at a progress from 0 (first optimiser step) to 1 (last)."""
    return linear(weight.start, weight.end, progress) if isinstance(weight, Linear) else weight


def largest(weight: Weight) -> float:
    """The largest value that a weight has in a run."""
    return max(weight.start, weight.end) if isinstance(weight, Linear) else weight


def linear(start: float, end: float, progress: float) -> float:
    """The value between two others at a progress from 0 to 1; exactly `end` at 1."""
    return (1 - progress) * start + progress * end


def multiplied(weight: Weight, own: Weight) -> Weight:
    """The weight of a part of a sum when the sum is weighted.

    Raises:
        DistilError: Both change, so that their product would not be linear.
    """
    if not isinstance(weight, Linear):
        return weight * own
    if isinstance(own, Linear):
        raise DistilError("a weight that changes cannot scale another one that changes; give each part one of them")
    return weight * own


def is_weight(value: object) -> bool:
    """Whether a value can be a factor of a method or an objective."""
    return isinstance(value, (Real, Linear))


def as_weight(value: Weight, what: str) -> Weight:
    """A weight of a sum, checked; a number as a float.

    Args:
        value: The weight.
        what: What it weighs, for the message: "a method".

    Raises:
        DistilError: It is neither a number of 0 or more nor a `Linear`.
    """
    if isinstance(value, Linear):
        return value
    if not (is_number(value) and value >= 0):
        raise DistilError(f"the weight of {what} must be a number of 0 or more, not {value!r}")
    return float(value)
