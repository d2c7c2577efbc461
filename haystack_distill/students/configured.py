"""Students made from a configuration: another shape of the teacher's family, with fresh weights."""

import copy
from typing import Any

import torch
from transformers import PreTrainedModel

from haystack_distill.errors import DistilError
from haystack_distill.students.layers import AnyModel, blank_model, layer_number, require_weights, set_per_layer
from haystack_distill.utils.checks import check_argument, is_integer, is_number, require_seed


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
    require_weights(teacher)
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
    set_per_layer(config, teacher.model.config, [layer % had for layer in range(given)], but=shape)
    if config.hidden_size % config.num_attention_heads:
        raise DistilError(
            f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads {config.num_attention_heads}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            student = blank_model(teacher.model, config)
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


def _check_shape(name: str, value: Any, present: Any) -> None:
    """A DistilError unless a value of a configuration is of the kind that stands there now."""
    if name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"):
        check_argument(name, value, is_integer(value, 1), "a whole number of at least 1")
    elif isinstance(present, bool):
        check_argument(name, value, isinstance(value, bool), "True or False")
    elif isinstance(present, int):
        check_argument(name, value, is_integer(value), "a whole number")
    elif isinstance(present, float):
        check_argument(name, value, is_number(value), "a number")
    elif isinstance(present, str):
        check_argument(name, value, isinstance(value, str), "text")


def _in_a_layer(model: PreTrainedModel, name: str) -> bool:
    """Whether a weight belongs to a layer, and not to embeddings, head or shared layers."""
    if model.config.model_type == "funnel":
        return ".encoder.blocks." in name or ".decoder.layers." in name
    return layer_number(model, name) is not None
