"""Adaptation: which weights of a student learn."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from haystack_distill.errors import DistilError
from haystack_distill.students.layers import layer_index
from haystack_distill.training.adaptations import ADAPTATIONS
from haystack_distill.utils.checks import check_argument, is_integer


class Adaptation(ABC):
    """A way to train a model's weights. A subclass is a frozen dataclass; its fields are the adaptation's options.

    As with `Method`, the first line of the docstring is the title, and the "Args:" are the options' help.
    """

    @abstractmethod
    def prepare(self, model: PreTrainedModel) -> None:
        """Set which weights learn (`requires_grad`), before the optimiser is made.

        Raises:
            DistilError: The model cannot be trained like this.
        """

    def callbacks(self) -> list[TrainerCallback]:
        """Callbacks of the run, for adaptations that change while it lasts."""
        return []

    def finish(self, model: PreTrainedModel) -> None:  # noqa: B027  (nothing to undo by default)
        """Turn what was trained into a plain model, after the last step."""


@dataclass(frozen=True)
class AllWeights(Adaptation):
    """All weights learn."""

    def prepare(self, model: PreTrainedModel) -> None:
        """Leave the model as it is; see `Adaptation.prepare`."""


@dataclass(frozen=True)
class LastLayers(Adaptation):
    """The last layers and the head learn; embeddings and the layers below are frozen.

    Args:
        n_layers: How many layers learn.
    """

    n_layers: int = 1

    def __post_init__(self) -> None:
        check_argument("n_layers", self.n_layers, is_integer(self.n_layers, 1), "a whole number of at least 1")

    def prepare(self, model: PreTrainedModel) -> None:
        """Freeze everything below the last layers; see `Adaptation.prepare`."""
        total = int(model.config.num_hidden_layers)
        if self.n_layers > total:
            raise DistilError(f"n_layers is {self.n_layers}, but the student has {total} layers; lower it")
        inside = f"{model.base_model_prefix}."
        for name, parameter in model.named_parameters():
            number = layer_index(model, name)
            in_head = number is None and not name.startswith(inside)
            _require_grad(parameter, in_head or (number is not None and number >= total - self.n_layers))


@dataclass(frozen=True)
class Biases(Adaptation):
    """Biases and the head learn (BitFit, Ben Zaken et al. 2022, arXiv 2106.10199)."""

    def prepare(self, model: PreTrainedModel) -> None:
        """Freeze everything but biases and head; see `Adaptation.prepare`."""
        inside = f"{model.base_model_prefix}."
        for name, parameter in model.named_parameters():
            _require_grad(parameter, name.endswith("bias") or not name.startswith(inside))


@contextlib.contextmanager
def adapted(model: PreTrainedModel, adaptation: Adaptation) -> Iterator[None]:
    """Train a model in here as the adaptation has it; afterwards all weights are as trainable as before."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        adaptation.prepare(model)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            name = ADAPTATIONS.name_of(adaptation)
            raise DistilError(f"the adaptation {name!r} freezes every weight of the student; choose another")
        yield
        adaptation.finish(model)
    finally:
        for parameter, trainable in before:
            parameter.requires_grad_(trainable)


def _require_grad(parameter: nn.Parameter, learns: bool) -> None:
    parameter.requires_grad_(learns and parameter.requires_grad)
