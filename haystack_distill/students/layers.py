"""Where the layers of an architecture are, and what its configuration has per layer."""

import re
from collections.abc import Collection
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedModel

from haystack_distill.errors import DistilError
from haystack_distill.models.language_model import LanguageModel
from haystack_distill.models.reader import Reader

_PER_LAYER = ("layer_types", "attention_window")  # of ModernBERT and of Longformer


AnyModel = TypeVar("AnyModel", Reader, LanguageModel)


def require_weights(model: AnyModel) -> None:
    if isinstance(model, Reader):
        model.require_weights()


def set_per_layer(config: Any, teacher: Any, kept: list[int], *, but: Collection[str] = ()) -> None:
    """Take what the teacher's configuration says per layer from the layers that are kept, counted from 0."""
    for name in _PER_LAYER:
        values = getattr(teacher, name, None)
        if isinstance(values, (list, tuple)) and name not in but:
            setattr(config, name, [values[layer] for layer in kept])


def blank_model(like: PreTrainedModel, config: Any) -> PreTrainedModel:
    """A model of the same class with another configuration, and with a pooling layer only where that has one."""
    without = {"add_pooling_layer": False} if getattr(like, "pooler", like) is None else {}
    return type(like)(config, **without)


def layer_list(model: PreTrainedModel) -> str | None:
    """The name of the module list that holds a model's layers, or None where layers share their weights (ALBERT)."""
    if model.config.model_type == "albert":
        return None
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers:
            return name
    raise DistilError(
        f"cannot find the layers of {type(model).__name__}; make the student another way (students.fresh, Reader.load)"
    )


def layer_number(model: PreTrainedModel, name: str) -> int | None:
    """Which layer (from 0) a weight belongs to; None for embeddings, head and shared layers."""
    layers = layer_list(model)
    found = re.match(rf"{re.escape(layers)}\.(\d+)\.", name) if layers else None
    return int(found.group(1)) if found else None
