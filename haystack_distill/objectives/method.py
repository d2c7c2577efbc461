"""Method: the options of a distillation method, which creates an objective from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from haystack_distill.errors import DistilError
from haystack_distill.objectives.schedule import Weight, as_weight, is_weight, linear, multiplied
from haystack_distill.utils.checks import check_argument, is_number

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from haystack_distill.objectives.objective import Objective


class Method(ABC):
    """A distillation method. Subclasses are frozen dataclasses; their fields are the options of the method.

    The dataclass is the only place that defines the options, their defaults and their help (the "Args:" section of the
    docstring): the command line, recipes, model cards and docs are generated from it. The first line of the docstring
    is the title of the method.

    Methods add up as objectives do: `0.8 * PredictionLayer(temperature=2.0) + 0.2 * IntermediateLayers()`. A weight may
    change while the run lasts: `Linear(1.0, 0.0) * IntermediateLayers()`.

    To add a method, write a subclass and its objective in a file of `objectives`, and add it to `training.methods`.

    Attributes:
        needs_teacher: Whether nothing is learnt without a teacher. Set it as a literal: the command line reads it from
            the source.
        needs_corpus: Whether text without questions is all that it learns from; a literal, too.
        needs_run_of: Options that name the output directory of an earlier run, in a recipe an earlier stage, and the
            method of that run.
    """

    needs_teacher: ClassVar[bool] = True
    needs_corpus: ClassVar[bool] = False
    needs_run_of: ClassVar[Mapping[str, str]] = MappingProxyType({})

    @abstractmethod
    def objective(self, student: PretrainedConfig, teacher: PretrainedConfig | None) -> Objective:
        """Create the objective for a student and a teacher.

        Args:
            student: The student's configuration.
            teacher: The teacher's configuration; None for a method that runs without a teacher.

        Raises:
            DistilError: The options do not suit student and teacher, or a teacher is missing.
        """

    def files(self) -> dict[str, Path]:
        """The files of earlier runs that the options in `needs_run_of` name, by option."""
        return {}

    def __add__(self, other: Method) -> MethodSum:
        if not isinstance(other, Method):
            return NotImplemented
        return MethodSum((*parts_of(self), *parts_of(other)))

    def __mul__(self, weight: Weight) -> MethodSum:
        if not is_weight(weight):
            return NotImplemented
        return MethodSum(tuple((multiplied(weight, own), part) for own, part in parts_of(self)))

    __rmul__ = __mul__


@dataclass(frozen=True)
class MethodSum(Method):
    """Several methods at once: the weighted sum of their objectives.

    Args:
        parts: Pairs of a weight, 0 or more or a `Linear`, and a method.

    Raises:
        DistilError: There is no part, or a weight is not a number of 0 or more.
    """

    parts: tuple[tuple[Weight, Method], ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise DistilError("a sum of methods needs at least one method; add one")
        for weight, _ in self.parts:
            as_weight(weight, "a method")

    def objective(self, student: PretrainedConfig, teacher: PretrainedConfig | None) -> Objective:
        """The sum of the parts' objectives; see `Method.objective`."""
        from haystack_distill.objectives.objective import WeightedSum

        return WeightedSum([(weight, part.objective(student, teacher)) for weight, part in self.parts])


def parts_of(method: Method) -> Sequence[tuple[Weight, Method]]:
    """The weighted parts of a method: those of a sum, or the method itself with weight 1."""
    return method.parts if isinstance(method, MethodSum) else ((1.0, method),)


def require_teacher(method: Method, teacher: PretrainedConfig | None) -> PretrainedConfig:
    """The teacher's configuration, for a method that cannot create its objective without one.

    Args:
        method: the method.
        teacher: what `Method.objective` was given.

    Raises:
        DistilError: there is none.
    """
    if teacher is None:
        raise DistilError(
            f"{type(method).__qualname__} needs a teacher with a configuration; give a reader or a language model, or "
            "set `config` of your own Teacher"
        )
    return teacher


def refuse_without_effect(method: Method, option: str, because: str) -> None:
    """Refuse an option that the method's other options make ineffective.

    Args:
        method: the method.
        option: the name of the option.
        because: what makes it ineffective, for the message.

    Raises:
        DistilError: the option does not have its default.
    """
    value, default = getattr(method, option), getattr(type(method), option)
    if value != default:
        raise DistilError(f"{because}, so {option}={value!r} would have no effect; leave it at {default!r}")


def check_temperature(value: object) -> None:
    """Check the option `temperature` of a method.

    Raises:
        DistilError: It is not a number above 0.
    """
    check_argument("temperature", value, is_number(value) and value > 0, "a number above 0")


def check_final_temperature(method: Method) -> None:
    """Check the option `final_temperature` of a method, beside `temperature`.

    Raises:
        DistilError: It is neither a number above 0 nor None, or is the temperature of the first step too.
    """
    first, final = getattr(method, "temperature"), getattr(method, "final_temperature")  # noqa: B009
    check_argument(
        "final_temperature", final, final is None or (is_number(final) and final > 0), "a number above 0, or None"
    )
    if final == first:
        raise DistilError(f"final_temperature={final} is the temperature of the first step too; leave it out")


def temperature_at(method: Method, progress: float) -> float:
    """The temperature of a method at a progress from 0 (first optimiser step) to 1 (last)."""
    first, final = getattr(method, "temperature"), getattr(method, "final_temperature")  # noqa: B009
    return float(first if final is None else linear(first, final, progress))


def check_weights(method: Method, *names: str) -> None:
    """Check the options of a method that weight its losses.

    Args:
        method: the method.
        names: the names of all those options, two or more.

    Raises:
        DistilError: one is not a number of 0 or more, or all of them are 0.
    """
    weights = {name: getattr(method, name) for name in names}
    for name, weight in weights.items():
        check_argument(name, weight, is_number(weight) and weight >= 0, "a number of 0 or more")
    if not any(weights.values()):
        listed = f"{', '.join(names[:-1])} and {names[-1]}"
        raise DistilError(f"there is nothing to learn: one of {listed} must be greater than 0")
