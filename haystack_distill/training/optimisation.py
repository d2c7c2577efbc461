"""The optimiser of a run: which weights learn at which rate, and how the rates change from step to step."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from haystack_distill.errors import DistilError
from haystack_distill.objectives.objective import Objective
from haystack_distill.students.layers import layer_index, layer_list_name
from haystack_distill.training.muon import MuonAndAdamW, hidden_matrices
from haystack_distill.training.settings import TrainingSettings

# The names that transformers' Trainer has for the shapes that it knows; a cyclic one is made here.
TRAINER_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def is_plain(settings: TrainingSettings) -> bool:
    """Whether all weights learn at one rate by AdamW, for which Trainer's own optimiser is used."""
    return settings.optimizer == "adamw" and settings.layer_decay == 1 and not _own_rates(settings)


def make_optimizer(
    settings: TrainingSettings,
    student: PreTrainedModel,
    objective: Objective,
    decayed: Collection[nn.Parameter],
    adamw: Callable[[list[dict[str, Any]]], Optimizer],
) -> Optimizer:
    """The optimiser of the weights of student and objective that are trained.

    Args:
        settings: `optimizer`, `weight_decay` and the learning rates.
        student: The student's model.
        objective: The objective.
        decayed: The weights that decay, all but biases and norms.
        adamw: Makes AdamW of groups of weights.

    Raises:
        DistilError: See `learning_rates` and, for "muon", `MuonAndAdamW`.
    """
    rates = learning_rates(settings, student, objective, trained=True)
    decaying = {id(parameter) for parameter in decayed}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    # Those of `learning_rate` come first: the rate of the first group is the one that is logged.
    for parameter, rate in sorted(rates.items(), key=lambda entry: entry[1] != settings.learning_rate):
        groups.setdefault((rate, id(parameter) in decaying), []).append(parameter)
    found: list[dict[str, Any]] = [
        {"params": parameters, "lr": rate, "weight_decay": settings.weight_decay if decays else 0.0}
        for (rate, decays), parameters in groups.items()
    ]
    if settings.optimizer == "muon":
        chosen = {id(parameter) for parameter in hidden_matrices(student)}
        return MuonAndAdamW(
            _only(found, lambda parameter: id(parameter) in chosen),
            _only(found, lambda parameter: id(parameter) not in chosen),
            adamw,
        )
    if settings.optimizer == "adam":
        return torch.optim.Adam(found, lr=settings.learning_rate)
    if settings.optimizer == "adadelta":
        return torch.optim.Adadelta(found, lr=settings.learning_rate)
    return adamw(found)


def _only(groups: list[dict[str, Any]], wanted: Callable[[nn.Parameter], bool]) -> list[dict[str, Any]]:
    """Groups with some of their weights alone, without those that are then empty."""
    chosen = [group | {"params": [parameter for parameter in group["params"] if wanted(parameter)]} for group in groups]
    return [group for group in chosen if group["params"]]


def learning_rates(
    settings: TrainingSettings, student: PreTrainedModel, objective: Objective, *, trained: bool = False
) -> dict[nn.Parameter, float]:
    """The peak of the learning rate of each weight of student and objective.

    Embeddings are what the encoder calls so; what it has beside embeddings and layers, such as a pooler or position
    biases that all layers share, learns at `learning_rate`. The head is what the model has beside its encoder.

    Args:
        settings: The settings.
        student: The student's model.
        objective: The objective.
        trained: Only of the weights that are trained.

    Raises:
        DistilError: A rate is set for weights that are not there or not trained, or `layer_decay` where layers share
            their weights.
    """
    decay, n_layers = settings.layer_decay, 0
    if decay != 1 and objective.keeps_answers:
        raise DistilError("layer_decay has no effect: no layer of the student is trained in this run; leave it out")
    if decay != 1:
        n_layers = int(student.config.num_hidden_layers)
        if layer_list_name(student) is None:
            raise DistilError(
                f"the layers of a {student.config.model_type} student share their weights, so layer_decay would have "
                "no effect; leave it out"
            )
    encoder = {id(parameter) for parameter in student.base_model.parameters()}
    own = _own_rates(settings)
    rates: dict[nn.Parameter, float] = {}
    unused, lowered = set(own), False
    for name, parameter in student.named_parameters():
        if trained and not parameter.requires_grad:
            continue
        option, rate = "", settings.learning_rate
        if id(parameter) not in encoder:
            option = "head_learning_rate"
        elif "embedding" in name:
            option = "embedding_learning_rate"
            rate *= decay**n_layers
            lowered |= decay != 1
        elif decay != 1:
            number = layer_index(student, name)
            rate *= 1.0 if number is None else decay ** (n_layers - 1 - number)
            lowered |= rate < settings.learning_rate
        rates[parameter] = own.get(option, rate)
        request = objective.student_request
        is_head = option == "head_learning_rate"
        reached = request.logits or request.exits if is_head else not objective.keeps_answers
        if objective.trains_student and reached:
            unused.discard(option)
    for parameter in objective.parameters():
        if parameter.requires_grad or not trained:
            rates[parameter] = own.get("projection_learning_rate", settings.learning_rate)
            unused.discard("projection_learning_rate")
    if decay != 1 and trained and not lowered:
        raise DistilError(
            "layer_decay has no effect: below the last layer nothing is trained in this run; leave it out"
        )
    for name in sorted(unused):
        raise DistilError(f"{name} has no effect: {_WHAT[name]} is trained in this run; leave it out")
    return rates


_WHAT = {
    "embedding_learning_rate": "no embedding",
    "head_learning_rate": "no head",
    "projection_learning_rate": "no projection of a method",
}


def _own_rates(settings: TrainingSettings) -> dict[str, float]:
    """The rates that are set for some weights alone, by the name of the setting."""
    rates = {name: getattr(settings, name) for name in _WHAT}
    return {name: rate for name, rate in rates.items() if rate is not None}


def cyclic_schedule(optimizer: Optimizer, *, warmup: int, steps: int, cycles: int) -> LambdaLR:
    """The learning rate rises once, then falls linearly to 0 `cycles` times, each time from its peak.

    Args:
        optimizer: The optimiser.
        warmup: The steps of the rise.
        steps: All steps of the run.
        cycles: How often the rate falls.
    """
    return LambdaLR(optimizer, partial(cyclic_factor, warmup=warmup, steps=steps, cycles=cycles))


def cyclic_factor(step: int, *, warmup: int, steps: int, cycles: int) -> float:
    """The share of its peak that a cyclic learning rate has after `step` steps; see `cyclic_schedule`."""
    if step < warmup:
        return step / warmup
    if step >= steps:
        return 0.0
    return 1.0 - (step - warmup) * cycles % (steps - warmup) / (steps - warmup)
