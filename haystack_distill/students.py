"""Making a student: cut from a teacher, a fresh smaller model of its family, on top of a general student, or with a
smaller vocabulary.

A hub name or directory as a student needs nothing of ours: `Reader.load(name)`.
"""

import copy
import re
from collections.abc import Collection, Sequence
from numbers import Integral
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import AutoModelForQuestionAnswering, PreTrainedModel

from haystack_distill.checks import check, is_number, is_whole
from haystack_distill.compat import for_answers
from haystack_distill.errors import DistilError
from haystack_distill.language_model import LanguageModel
from haystack_distill.reader import Reader
from haystack_distill.settings import require_seed
from haystack_distill.vocabulary import prune_vocabulary

__all__ = ["fresh", "from_language_model", "from_teacher", "prune_vocabulary"]

_PER_LAYER = ("layer_types", "attention_window")  # of ModernBERT and of Longformer

AnyModel = TypeVar("AnyModel", Reader, LanguageModel)


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
    _require_weights(teacher)
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
    _set_per_layer(config, teacher.model.config, [layer - 1 for layer in kept])
    student = _blank(teacher.model, config)
    _copy_weights(teacher.model, student, kept)
    return teacher.with_model(student)


def fresh(teacher: AnyModel, *, seed: int = 42, **shape: Any) -> AnyModel:
    """A student of the teacher's family with a smaller shape and random weights, except where weights fit.

    Args:
        teacher: The reader or language model whose configuration and tokenizer are taken. It is not changed.
        seed: Seed of the random weights.
        shape: Changed configuration values, named as in the model's configuration: `num_hidden_layers`, `hidden_size`,
            `num_attention_heads`, `intermediate_size`, ...

    Raises:
        DistilError: A name that the configuration does not have, a value of another type, a width that the heads do
            not divide, or a shape that the architecture cannot have.
    """
    _require_weights(teacher)
    require_seed(seed)
    config = copy.deepcopy(teacher.model.config)
    for name, value in shape.items():
        if name not in config.to_dict() and name not in config.attribute_map:
            raise DistilError(f"the configuration of {config.model_type} has no {name!r}")
        _check_shape(name, value, getattr(config, name))
        try:
            setattr(config, name, value)
        except Exception as error:  # transformers 5 has errors of its own for what a field cannot be
            raise DistilError(f"{name} cannot be {value!r}: {error}") from error
    given, had = config.num_hidden_layers, teacher.model.config.num_hidden_layers
    _set_per_layer(config, teacher.model.config, [layer % had for layer in range(given)], but=shape)
    if config.hidden_size % config.num_attention_heads:
        raise DistilError(
            f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads {config.num_attention_heads}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            student = _blank(teacher.model, config)
        except Exception as error:  # each architecture meets what it cannot be in a place of its own
            said = ", ".join(f"{name}={value!r}" for name, value in shape.items())
            reason = str(error).splitlines()[0]
            raise DistilError(f"no {config.model_type} model can be made with {said}: {reason}") from error
    own = student.state_dict()
    carried = {
        name: weight
        for name, weight in teacher.model.state_dict().items()
        if name in own and own[name].shape == weight.shape and not _in_a_layer(teacher.model, name)
    }
    # Layers of the same shape are as random as the rest: a layer only makes sense on top of those it grew up with.
    student.load_state_dict(carried, strict=False)
    return teacher.with_model(student)


def from_language_model(student: LanguageModel, teacher: Reader) -> Reader:
    """A reader on top of a student that knows the language: its encoder, and the teacher's head where it fits.

    Args:
        student: What general distillation left. It is not changed.
        teacher: The reader whose settings and, where the widths agree, question answering head are taken.

    Raises:
        DistilError: The student lacks weights that a reader of its kind needs.
    """
    _require_weights(teacher)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a head that does not fit starts the same every time
        model = AutoModelForQuestionAnswering.from_config(for_answers(student.model.config), trust_remote_code=False)
    missing, _ = model.base_model.load_state_dict(student.model.base_model.state_dict(), strict=False)
    if missing:
        raise DistilError(f"the student's encoder lacks {', '.join(missing)}, so no reader can stand on it")
    inside = f"{model.base_model_prefix}."
    own = model.state_dict()
    head = {
        name: weight
        for name, weight in teacher.model.state_dict().items()
        if not name.startswith(inside) and name in own and own[name].shape == weight.shape
    }
    model.load_state_dict(head, strict=False)
    return teacher.with_model(model, student.tokenizer)


def _require_weights(model: AnyModel) -> None:
    if isinstance(model, Reader):
        model.require_weights()


def _check_shape(name: str, value: Any, present: Any) -> None:
    """A DistilError unless a value of a configuration is of the kind that stands there now."""
    if name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"):
        check(name, value, is_whole(value), "a whole number of at least 1")
    elif isinstance(present, bool):
        check(name, value, isinstance(value, bool), "True or False")
    elif isinstance(present, int):
        check(name, value, isinstance(value, int) and not isinstance(value, bool), "a whole number")
    elif isinstance(present, float):
        check(name, value, is_number(value), "a number")
    elif isinstance(present, str):
        check(name, value, isinstance(value, str), "text")


def _set_per_layer(config: Any, teacher: Any, kept: list[int], *, but: Collection[str] = ()) -> None:
    """Take what the teacher's configuration says per layer from the layers that are kept, counted from 0."""
    for name in _PER_LAYER:
        values = getattr(teacher, name, None)
        if isinstance(values, (list, tuple)) and name not in but:
            setattr(config, name, [values[layer] for layer in kept])


def _blank(like: PreTrainedModel, config: Any) -> PreTrainedModel:
    """A model of the same class with another configuration, and with a pooling layer only where that has one."""
    without = {"add_pooling_layer": False} if getattr(like, "pooler", like) is None else {}
    return type(like)(config, **without)


def _kept_layers(total: int, layers: int, which: str | Sequence[int]) -> list[int]:
    """The teacher layers that a student keeps, counted from 1."""
    if not (is_whole(layers) and layers <= total):
        raise DistilError(f"a student cut from a teacher of {total} layers has 1 to {total} layers, not {layers!r}")
    if which == "uniform":
        return [(2 * layer * total + layers) // (2 * layers) for layer in range(1, layers + 1)]
    if which == "first":
        return list(range(1, layers + 1))
    if which == "last":
        return list(range(total - layers + 1, total + 1))
    listed = isinstance(which, Sequence) and not isinstance(which, str)
    check("which", which, listed and all(map(_is_layer, which)), "'uniform', 'first', 'last' or a list of layers")
    kept = [int(layer) for layer in which]
    if len(kept) != layers or kept != sorted(set(kept)) or not all(1 <= layer <= total for layer in kept):
        raise DistilError(
            f"which must name {layers} different layers between 1 and {total} in rising order, not {kept}"
        )
    return kept


def _is_layer(number: Any) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool)


def _layer_list(model: PreTrainedModel) -> str | None:
    """The name of the module list that holds a model's layers, or None where layers share their weights (ALBERT)."""
    if model.config.model_type == "albert":
        return None
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers:
            return name
    raise DistilError(
        f"cannot find the layers of {type(model).__name__}; make the student another way (students.fresh, Reader.load)"
    )


def _in_a_layer(model: PreTrainedModel, name: str) -> bool:
    """Whether a weight belongs to a layer, and not to embeddings, head or shared layers."""
    if model.config.model_type == "funnel":
        return ".encoder.blocks." in name or ".decoder.layers." in name
    return _layer_number(model, name) is not None


def _layer_number(model: PreTrainedModel, name: str) -> int | None:
    """Which layer (from 0) a weight belongs to; None for embeddings, head and shared layers."""
    layers = _layer_list(model)
    found = re.match(rf"{re.escape(layers)}\.(\d+)\.", name) if layers else None
    return int(found.group(1)) if found else None


def _copy_weights(teacher: PreTrainedModel, student: PreTrainedModel, kept: list[int]) -> None:
    layers = _layer_list(teacher)
    place = {layer - 1: position for position, layer in enumerate(kept)}
    weights = {}
    for name, weight in teacher.state_dict().items():
        number = _layer_number(teacher, name)
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
