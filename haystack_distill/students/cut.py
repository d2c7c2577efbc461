"""Students cut from a teacher: some of its layers, its embeddings and its head."""

import copy
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from haystack_distill.errors import DistilError
from haystack_distill.students.layers import (
    AnyModel,
    blank_model,
    layer_list,
    layer_number,
    require_weights,
    set_per_layer,
)
from haystack_distill.utils.checks import check_argument, is_integer
from haystack_distill.utils.layer_mapping import last_layers, uniform_layers


def from_teacher(teacher: AnyModel, layers: int = 3, which: str | Sequence[int] = "uniform") -> AnyModel:
    """A student with some of the teacher's layers; embeddings and head are carried over.

    Args:
        teacher: The reader or language model to cut. It is not changed.
        layers: How many layers the student has.
        which: The teacher layers (counted from 1) that are kept. "uniform" keeps every (N / layers)-th and always the
            last, as TinyBERT maps layers (arXiv 1909.10351); "first" and "last" as they say; or a list, rising, whose
            length is `layers`.

    Raises:
        DistilError: More layers than the teacher has, a list that does not fit, or layers that cannot be kept singly.
    """
    require_weights(teacher)
    total = int(teacher.model.config.num_hidden_layers)
    kept = _kept_layers(total, layers, which)
    if len(kept) < total and getattr(teacher.model.config, "num_hidden_groups", 1) > 1:
        raise DistilError(
            "the teacher's layers share their weights in groups (ALBERT with num_hidden_groups above 1), so single "
            "layers cannot be kept; make the student another way (students.fresh, Reader.load)"
        )
    if teacher.model.config.model_type == "funnel":
        raise DistilError(
            "the teacher's layers stand in blocks that shorten the text (Funnel), so single layers cannot be kept; "
            "make the student another way (students.fresh with block_sizes, Reader.load)"
        )
    config = copy.deepcopy(teacher.model.config)
    config.num_hidden_layers = len(kept)
    set_per_layer(config, teacher.model.config, [layer - 1 for layer in kept])
    student = blank_model(teacher.model, config)
    _copy_weights(teacher.model, student, kept)
    return teacher.with_model(student)


def _kept_layers(total: int, layers: int, which: str | Sequence[int]) -> list[int]:
    """The teacher layers that a student keeps, counted from 1."""
    if not (is_integer(layers, 1) and layers <= total):
        raise DistilError(f"a student cut from a teacher of {total} layers has 1 to {total} layers, not {layers!r}")
    if which == "uniform":
        return uniform_layers(layers, total)
    if which == "first":
        return list(range(1, layers + 1))
    if which == "last":
        return last_layers(layers, total)
    listed = isinstance(which, Sequence) and not isinstance(which, str)
    check_argument(
        "which", which, listed and all(map(_is_layer, which)), "'uniform', 'first', 'last' or a list of layers"
    )
    kept = [int(layer) for layer in which]
    if len(kept) != layers or kept != sorted(set(kept)) or not all(1 <= layer <= total for layer in kept):
        raise DistilError(
            f"which must name {layers} different layers between 1 and {total} in rising order, not {kept}"
        )
    return kept


def _is_layer(number: Any) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool)


def _copy_weights(teacher: PreTrainedModel, student: PreTrainedModel, kept: list[int]) -> None:
    layers = layer_list(teacher)
    place = {layer - 1: position for position, layer in enumerate(kept)}
    weights = {}
    for name, weight in teacher.state_dict().items():
        number = layer_number(teacher, name)
        if number is None:
            weights[name] = weight
        elif number in place:
            rest = name[len(f"{layers}.{number}.") :]
            weights[f"{layers}.{place[number]}.{rest}"] = weight
    # ModernBERT's first layer has no normalisation before its attention: the embeddings are normalised already.
    bare = [name for name, module in student.named_modules() if isinstance(module, nn.Identity)]
    for name in bare:
        for parameter in ("weight", "bias"):
            weights.pop(f"{name}.{parameter}", None)
    student.load_state_dict(weights)
