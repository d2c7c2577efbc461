"""Adaptation: which weights of a student are trained."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from haystack_distill.errors import DistilError
from haystack_distill.utils.checks import check_argument, is_integer
from haystack_distill.utils.registry import Registry

if TYPE_CHECKING:  # the registry is read for help on the command line, which must not wait for torch
    from torch import nn
    from transformers import PreTrainedModel, TrainerCallback, TrainerState

    from haystack_distill.training.settings import TrainingSettings


class Adaptation(ABC):
    """Which weights of a model are trained, and how. Base class of frozen dataclasses; their fields are the options.

    As with `Method`, the first line of the docstring is the title, and its "Args:" section is the help of the options.

    Attributes:
        save_only_trained: Whether a run saves only the weights that differ from those of the student's base; see
            `Reader.save`. An adaptation that offers it has an option of this name.
        keeps_parts: Whether the trained model has parts that a plain one has not, so that only weights that differ from
            those of the base are saved.
        freezes_later: Whether weights that the optimiser holds are frozen for a part of the run.
    """

    save_only_trained = False
    keeps_parts = False
    freezes_later = False

    @property
    def needs_evaluations(self) -> str | None:
        """The option that has an effect only where the student is evaluated during the run, if it is set; else None."""
        return None

    def unmeasured(self) -> Adaptation:
        """The same without what needs evaluations, for a run that only times its steps."""
        return self

    @abstractmethod
    def prepare(self, model: PreTrainedModel) -> None:
        """Set which weights are trained (`requires_grad`); called before the optimiser is created.

        Args:
            model: The student's model.

        Raises:
            DistilError: The adaptation does not suit the model.
        """

    def callbacks(self, model: PreTrainedModel, settings: TrainingSettings) -> list[TrainerCallback]:
        """Callbacks for transformers' Trainer, for adaptations that change during training.

        Args:
            model: The student's model, prepared.
            settings: The settings of the run.
        """
        return []

    def first_trained(self, model: PreTrainedModel) -> list[nn.Parameter]:
        """The weights that are trained from the first step on.

        Args:
            model: The student's model, prepared.
        """
        return [parameter for parameter in model.parameters() if parameter.requires_grad]

    def phase_starts(
        self, model: PreTrainedModel, settings: TrainingSettings
    ) -> Callable[[TrainerState], Sequence[float]]:
        """What gives the step at which each phase begins; from the last one on no further weights are trained.

        With `keep_best` each phase begins with the best weights so far, and a run stops early in its last phase only.

        Args:
            model: The student's model, prepared.
            settings: The settings of the run.
        """
        return lambda state: (0.0,)

    def finish(self, model: PreTrainedModel) -> None:  # noqa: B027  (nothing to undo by default)
        """Turn the model into a plain model where that is possible, after the last step or an interruption.

        Args:
            model: The student's model.
        """


def has_begun(start: float, step: int) -> bool:
    """Whether a phase has begun at a step; where it begins is a share of all steps, and may be between two of them."""
    return step >= start - 1e-6  # shares such as 0.1 are not exact


@dataclass(frozen=True)
class AllWeights(Adaptation):
    """All weights are trained."""

    def prepare(self, model: PreTrainedModel) -> None:
        """Does nothing; see `Adaptation.prepare`."""


@dataclass(frozen=True)
class LastLayers(Adaptation):
    """The last layers and the head are trained; the other layers, and the embeddings unless asked for, are frozen.

    Args:
        n_layers: Number of layers that are trained.
        embeddings: Train the embeddings too, with whatever else belongs to no layer.
        save_only_trained: Save only the weights that differ from those of the reader or encoder that the student was
            loaded from, with a reference to it; see `Reader.save`.
    """

    n_layers: int = 1
    embeddings: bool = False
    save_only_trained: bool = False

    def __post_init__(self) -> None:
        check_argument("n_layers", self.n_layers, is_integer(self.n_layers, 1), "a whole number of at least 1")
        for name in ("embeddings", "save_only_trained"):
            check_argument(name, getattr(self, name), isinstance(getattr(self, name), bool), "True or False")

    def prepare(self, model: PreTrainedModel) -> None:
        """Freeze the other layers and the embeddings; see `Adaptation.prepare`.

        Raises:
            DistilError: The model has fewer than `n_layers` layers, or its layers share their weights.
        """
        from haystack_distill.students.layers import layer_index, layer_list_name

        total = int(model.config.num_hidden_layers)
        if self.n_layers > total:
            raise DistilError(f"n_layers is {self.n_layers}, but the student has {total} layers; lower it")
        if layer_list_name(model) is None:
            raise DistilError(
                f"the layers of a {model.config.model_type} model share their weights, so the last ones cannot be "
                "trained alone; choose another adaptation"
            )
        head = head_of(model)
        for name, parameter in model.named_parameters():
            number = layer_index(model, name)
            last = self.embeddings if number is None else number >= total - self.n_layers
            train_if(last or id(parameter) in head, parameter)


@dataclass(frozen=True)
class Head(Adaptation):
    """The head alone is trained; the encoder is frozen.

    Args:
        save_only_trained: Save only the weights that differ from those of the reader or encoder that the student was
            loaded from, with a reference to it; see `Reader.save`.
    """

    save_only_trained: bool = False

    def prepare(self, model: PreTrainedModel) -> None:
        """Freeze the encoder; see `Adaptation.prepare`."""
        head = head_of(model)
        for parameter in model.parameters():
            train_if(id(parameter) in head, parameter)


@dataclass(frozen=True)
class Biases(Adaptation):
    """Biases and the head are trained (BitFit, Ben Zaken et al. 2022, arXiv 2106.10199).

    Args:
        save_only_trained: Save only the weights that differ from those of the reader or encoder that the student was
            loaded from, with a reference to it; see `Reader.save`.
    """

    save_only_trained: bool = False

    def prepare(self, model: PreTrainedModel) -> None:
        """Freeze everything except biases and head; see `Adaptation.prepare`.

        Raises:
            DistilError: The encoder has no biases.
        """
        head = head_of(model)
        biases = {
            id(parameter)
            for name, parameter in model.named_parameters()
            if "bias" in name.rpartition(".")[2]  # bias_ih_l0, r_w_bias
        }
        if not biases - head:
            raise DistilError(
                f"the encoder of a {model.config.model_type} model has no biases, so the head alone would be trained; "
                "choose another adaptation, such as head or lora"
            )
        for parameter in model.parameters():
            train_if(id(parameter) in biases | head, parameter)


# One name for an adaptation everywhere, as in `training.methods` for methods.
ADAPTATIONS: Registry[Adaptation] = Registry(
    "adaptation",
    {
        "all": "haystack_distill.training.adaptation:AllWeights",
        "last_layers": "haystack_distill.training.adaptation:LastLayers",
        "head": "haystack_distill.training.adaptation:Head",
        "biases": "haystack_distill.training.adaptation:Biases",
        "adapters": "haystack_distill.training.adapters:Adapters",
        "lora": "haystack_distill.training.lora:Lora",
        "gradual_unfreezing": "haystack_distill.training.gradual_unfreezing:GradualUnfreezing",
        "quantisation_aware": "haystack_distill.training.quantisation_aware:QuantisationAware",
    },
)


@contextlib.contextmanager
def adapted(model: PreTrainedModel, adaptation: Adaptation) -> Iterator[None]:
    """Apply an adaptation to a model within the context, and restore `requires_grad` of its weights afterwards.

    Raises:
        DistilError: The adaptation does not suit the model, or freezes all of its weights.
    """
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        adaptation.prepare(model)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            name = ADAPTATIONS.name_of(adaptation)
            raise DistilError(f"the adaptation {name!r} freezes every weight of the student; choose another")
        yield
    finally:
        adaptation.finish(model)
        for parameter, trainable in before:
            parameter.requires_grad_(trainable)


def head_of(model: PreTrainedModel) -> set[int]:
    """The ids of the parameters outside the encoder; an encoder alone has none."""
    encoder = {id(parameter) for parameter in model.base_model.parameters()}
    return {id(parameter) for parameter in model.parameters()} - encoder


def train_if(trained: bool, parameter: nn.Parameter) -> None:
    """Freeze a parameter unless it is trained; one that was frozen before stays so."""
    parameter.requires_grad_(trained and parameter.requires_grad)
