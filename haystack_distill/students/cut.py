"""Students cut from a teacher: a subset of its layers, with its embeddings and head."""

import copy
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from haystack_distill.errors import DistilError
from haystack_distill.students.layers import (
    AnyModel,
    layer_index,
    layer_list_name,
    new_model,
    require_weights,
    set_per_layer,
)
from haystack_distill.utils.checks import check_argument, is_integer
from haystack_distill.utils.layer_mapping import BLOCK_STARTS, block_starts, last_layers, uniform_layers


def from_teacher(teacher: AnyModel, layers: int = 3, which: str | Sequence[int] = BLOCK_STARTS) -> AnyModel:
    """Create a student with a subset of the teacher's layers, and its embeddings and head.

    Args:
        teacher: The reader or language model to cut. It is not changed.
        layers: The number of layers of the student.
        which: The teacher layers that are kept: "block_starts" (evenly spread, always with the first: each layer begins
            with the input that it is used to), "uniform" (evenly spread, always with the last, as TinyBERT, arXiv
            1909.10351, maps them), "first", "last", or a list of `layers` layer numbers, counted from 1, in ascending
            order. By measurement (docs/methods/measured.md) a student does best without the last layers of a reader.

    Raises:
        DistilError: `layers` is not between 1 and the number of the teacher's layers, the list is invalid, or the
            architecture does not allow single layers to be kept.
    """
    require_weights(teacher)
    total = int(teacher.model.config.num_hidden_layers)
    kept = _kept_layers(total, layers, which)
    if len(kept) < total and getattr(teacher.model.config, "num_hidden_groups", 1) > 1:
        raise DistilError(
            "the teacher's layers share their weights in groups (ALBERT with num_hidden_groups above 1), so single "
            "layers cannot be kept: use students.from_config, or Reader.load with another model"
        )
    if teacher.model.config.model_type == "funnel":
        raise DistilError(
            "the teacher's layers form blocks that shorten the sequence (Funnel), so single layers cannot be kept: "
            "use students.from_config with block_sizes, or Reader.load with another model"
        )
    config = copy.deepcopy(teacher.model.config)
    config.num_hidden_layers = len(kept)
    set_per_layer(config, teacher.model.config, [layer - 1 for layer in kept])
    student = new_model(teacher.model, config)
    _copy_weights(teacher.model, student, kept)
    return teacher.replace(model=student)


def _kept_layers(total: int, layers: int, which: str | Sequence[int]) -> list[int]:
    """The numbers of the teacher layers that a student keeps, counted from 1."""
    if not (is_integer(layers, 1) and layers <= total):
        raise DistilError(
            f"a student cut from a teacher of {total} layers must have 1 to {total} layers, not {layers!r}"
        )
    if which == BLOCK_STARTS:
        return block_starts(layers, total)
    if which == "uniform":
        return uniform_layers(layers, total)
    if which == "first":
        return list(range(1, layers + 1))
    if which == "last":
        return last_layers(layers, total)
    listed = isinstance(which, Sequence) and not isinstance(which, str)
    check_argument(
        "which",
        which,
        listed and all(map(_is_layer, which)),
        "'block_starts', 'uniform', 'first', 'last' or a list of layers",
    )
    kept = [int(layer) for layer in which]
    if len(kept) != layers or kept != sorted(set(kept)) or not all(1 <= layer <= total for layer in kept):
        raise DistilError(
            f"which must name {layers} different layers between 1 and {total} in ascending order, not {kept}"
        )
    return kept


def _is_layer(number: Any) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool)


def _copy_weights(teacher: PreTrainedModel, student: PreTrainedModel, kept: list[int]) -> None:
    """Copy all weights of the teacher to the student, except those of the layers that are not kept."""
    layers = layer_list_name(teacher)
    place = {layer - 1: position for position, layer in enumerate(kept)}
    weights = {}
    for name, weight in teacher.state_dict().items():
        number = layer_index(teacher, name)
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
