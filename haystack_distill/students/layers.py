"""The layers of an architecture: their weights, and their entries in the configuration."""

import copy
import re
from collections.abc import Collection, Sequence
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedModel

from haystack_distill.errors import DistilError
from haystack_distill.models.adapters import require_plain
from haystack_distill.models.bilstm_config import MODEL_TYPE
from haystack_distill.models.calibration import forget_calibration
from haystack_distill.models.language_model import LanguageModel
from haystack_distill.models.reader import Reader
from haystack_distill.utils.families import family_of

_PER_LAYER = ("layer_types", "attention_window")  # of ModernBERT and Longformer


AnyModel = TypeVar("AnyModel", Reader, LanguageModel)


def require_weights(model: AnyModel) -> None:
    """Check that a teacher has the weights of a plain model: it is not an exported one, and has no adapters.

    Raises:
        DistilError: It has none, or adapters, which a student would lack.
    """
    require_plain(model.model, "no student can be made of it")
    if isinstance(model, Reader):
        model.require_weights()


def set_per_layer(config: Any, teacher: Any, kept: list[int], *, exclude: Collection[str] = ()) -> None:
    """Copy the per-layer entries of the teacher's configuration for the kept layers, counted from 0."""
    for name in _PER_LAYER:
        values = getattr(teacher, name, None)
        if isinstance(values, (list, tuple)) and name not in exclude:
            setattr(config, name, [values[layer] for layer in kept])


def new_model(like: PreTrainedModel, config: Any) -> PreTrainedModel:
    """A newly initialised model of the same class with another configuration; it has a pooler if `like` has one.

    The record of a calibration, of other weights, goes from the configuration.
    """
    forget_calibration(config)
    without = {"add_pooling_layer": False} if getattr(like, "pooler", like) is None else {}
    return type(like)(config, **without)


def layer_list_name(model: PreTrainedModel) -> str | None:
    """The name of the module list with a model's layers, or None if the layers share their weights (ALBERT).

    Raises:
        DistilError: There is no such list.
    """
    if family_of(model.config) == "albert":
        return None
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers:
            return name
    raise DistilError(
        f"cannot find the layers of {type(model).__name__}: use students.from_config, or Reader.load with another model"
    )


def layer_index(model: PreTrainedModel, name: str) -> int | None:
    """The index of the layer, counted from 0, that a weight belongs to; None for embeddings, head and shared layers."""
    layers = layer_list_name(model)
    found = re.match(rf"{re.escape(layers)}\.(\d+)\.", name) if layers else None
    return int(found.group(1)) if found else None


def dense_layers(model: PreTrainedModel) -> list[str]:
    """The names of the dense layers inside a model's layers: not those of embeddings, pooler and head.

    Raises:
        DistilError: The layers cannot be found.
    """
    layers = layer_list_name(model)
    if layers is None:  # ALBERT
        layers = next(name for name, _ in model.named_modules() if name.endswith("albert_layer_groups"))
    found = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [name for name in found if name.startswith(f"{layers}.")]


def keep_layers(teacher: AnyModel, kept: Sequence[int]) -> AnyModel:
    """A copy of a model with some of its layers, counted from 1, in ascending order.

    Raises:
        DistilError: The architecture does not allow single layers to be kept.
    """
    total = int(teacher.model.config.num_hidden_layers)
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
    if teacher.model.config.model_type == MODEL_TYPE and 1 not in kept:
        raise DistilError(
            "the first layer of a BiLSTM reader reads embeddings, and the others what a layer before them writes, so "
            "the first one has to be kept: choose the layers by which='first', or make a smaller one by students.bilstm"
        )
    config = copy.deepcopy(teacher.model.config)
    config.num_hidden_layers = len(kept)
    set_per_layer(config, teacher.model.config, [layer - 1 for layer in kept])
    student = new_model(teacher.model, config)
    _copy_weights(teacher.model, student, kept)
    return teacher.replace(model=student)


def _copy_weights(teacher: PreTrainedModel, student: PreTrainedModel, kept: Sequence[int]) -> None:
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
