"""Students from a configuration: the teacher's architecture in another shape, newly initialised."""

import copy
from typing import Any

import torch
from transformers import PreTrainedModel

from haystack_distill.errors import DistilError
from haystack_distill.students.layers import AnyModel, layer_index, new_model, require_weights, set_per_layer
from haystack_distill.utils.checks import check_argument, is_integer, is_number, require_seed


def fresh(teacher: AnyModel, *, seed: int = 42, **shape: Any) -> AnyModel:
    """Create a student of the teacher's architecture with another shape.

    Its layers are initialised at random. Embeddings and head are taken from the teacher where the shapes agree.

    Args:
        teacher: The reader or language model whose configuration and tokenizer are used. It is not changed.
        seed: The seed of the random weights.
        shape: Changed values, named as in the model's configuration: `num_hidden_layers`, `hidden_size`,
            `num_attention_heads`, `intermediate_size`, ...

    Raises:
        DistilError: The configuration lacks a name, a value has another type, the hidden size is not a multiple of the
            number of heads, or the architecture does not support the shape.
    """
    require_weights(teacher)
    require_seed(seed)
    config = copy.deepcopy(teacher.model.config)
    for name, value in shape.items():
        if name not in config.to_dict() and name not in config.attribute_map:
            raise DistilError(f"the configuration of {config.model_type} has no {name!r}: give one of its own names")
        _check_shape(name, value, getattr(config, name))
        try:
            setattr(config, name, value)
        except Exception as error:  # transformers 5 validates fields with its own classes
            raise DistilError(f"{name} cannot be {value!r} ({error}): choose another value") from error
    n_layers, n_teacher = config.num_hidden_layers, teacher.model.config.num_hidden_layers
    set_per_layer(config, teacher.model.config, [layer % n_teacher for layer in range(n_layers)], exclude=shape)
    if config.hidden_size % config.num_attention_heads:
        raise DistilError(
            f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads {config.num_attention_heads}: "
            "change one of them"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            student = new_model(teacher.model, config)
        except Exception as error:  # each architecture has its own errors
            values = ", ".join(f"{name}={value!r}" for name, value in shape.items())
            reason = str(error).splitlines()[0]
            raise DistilError(
                f"no {config.model_type} model can be made with {values} ({reason}): choose another shape"
            ) from error
    own = student.state_dict()
    copied = {
        name: weight
        for name, weight in teacher.model.state_dict().items()
        if name in own and own[name].shape == weight.shape and not _is_in_layer(teacher.model, name)
    }
    # Layers are not copied even if their shapes agree: a layer depends on those below it.
    student.load_state_dict(copied, strict=False)
    return teacher.replace(model=student)


def _check_shape(name: str, value: Any, present: Any) -> None:
    """Check that a configuration value has the type of the present one.

    Raises:
        DistilError: It has another type.
    """
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


def _is_in_layer(model: PreTrainedModel, name: str) -> bool:
    """Whether a weight belongs to a layer, and not to the embeddings, the head or shared layers."""
    if model.config.model_type == "funnel":
        return ".encoder.blocks." in name or ".decoder.layers." in name
    return layer_index(model, name) is not None
