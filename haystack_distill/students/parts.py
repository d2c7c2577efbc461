"""The parts inside a model's layers that can be cut out one by one: feed-forward neurons and attention heads.

A part is made by rows of one or several dense layers and taken by columns of another, so without it the model is an
ordinary one of a smaller size, where its configuration has a value for that size.
"""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from haystack_distill.errors import DistilError
from haystack_distill.models.outputs import attention_width
from haystack_distill.students.layers import AnyModel, new_model


@dataclass(frozen=True)
class Parts:
    """Where an architecture keeps parts of one kind. The same in transformers 4 and 5.

    Attributes:
        places: Modules that hold parts, as a regular expression that their names end with.
        makers: The dense layers inside a place that make the parts.
        output: The dense layer inside a place that takes them as its input.
        number: The configuration's name for the number of parts of a place.
        size: The configuration's name for the width of a part; None where it has none.
        axes: Other parameters of a place that have an entry for each part, and in which dimension.
    """

    places: str
    makers: tuple[str, ...]
    output: str
    number: str
    size: str | None = None
    axes: Mapping[str, int] = field(default_factory=dict)

    def find(self, model: PreTrainedModel) -> dict[str, nn.Linear]:
        """The dense layer that takes the parts, by the name of the place; empty where the model has no such parts."""
        pattern = re.compile(rf"(?:^|\.){self.places}$")
        found = {}
        for name, module in model.named_modules():
            if pattern.search(name):
                output = _descendant(module, self.output)
                if isinstance(output, nn.Linear):
                    found[name] = output
        return found

    def count(self, config: PretrainedConfig) -> int:
        """The number of parts of a place."""
        return int(getattr(config, self.number))

    def width(self, config: PretrainedConfig) -> int:
        """The width of a part."""
        if self.number not in _HEAD_COUNTS:
            return 1
        size = None if self.size is None else getattr(config, self.size, None)
        return int(size or attention_width(config) // self.count(config))


_HEAD_COUNTS = ("num_attention_heads", "n_head")
_BERT_NEURONS = Parts(r"encoder\.layer\.\d+", ("intermediate.dense",), "output.dense", "intermediate_size")
_BERT_HEADS = Parts(
    r"encoder\.layer\.\d+\.attention",
    ("self.query", "self.key", "self.value"),
    "output.dense",
    "num_attention_heads",
)

# By `config.model_type`; all others are looked for where BERT has them, which many architectures are copies of.
_NEURONS = {
    "distilbert": Parts(r"transformer\.layer\.\d+\.ffn", ("lin1",), "lin2", "hidden_dim"),
    "albert": Parts(r"albert_layer_groups\.\d+\.albert_layers\.\d+", ("ffn",), "ffn_output", "intermediate_size"),
    # Its question answering head has a feed-forward layer of its own, as wide.
    "big_bird": Parts(
        r"(?:encoder\.layer\.\d+|qa_classifier)", ("intermediate.dense",), "output.dense", "intermediate_size"
    ),
    "mobilebert": Parts(
        r"encoder\.layer\.\d+(?:\.ffn\.\d+)?", ("intermediate.dense",), "output.dense", "intermediate_size"
    ),
    "funnel": Parts(r"(?:encoder\.blocks\.\d+|decoder\.layers)\.\d+\.ffn", ("linear_1",), "linear_2", "d_inner"),
    "modernbert": Parts(r"layers\.\d+\.mlp", ("Wi",), "Wo", "intermediate_size"),  # Wi makes each neuron and its gate
    "jina_embeddings_v3": Parts(r"layers\.\d+\.mlp", ("fc1",), "fc2", "intermediate_size"),
}
_FUNNEL_AXES = {"r_w_bias": 0, "r_r_bias": 0, "r_kernel": 1, "r_s_bias": 0, "seg_embed": 1}
_HEADS = {
    "distilbert": Parts(
        r"transformer\.layer\.\d+\.attention", ("q_lin", "k_lin", "v_lin"), "out_lin", "num_attention_heads"
    ),
    "albert": Parts(r"albert_layers\.\d+\.attention", ("query", "key", "value"), "dense", "num_attention_heads"),
    "mpnet": Parts(r"encoder\.layer\.\d+\.attention\.attn", ("q", "k", "v"), "o", "num_attention_heads"),
    "funnel": Parts(
        r"(?:encoder\.blocks\.\d+|decoder\.layers)\.\d+\.attention",
        ("q_head", "k_head", "v_head"),
        "post_proj",
        "n_head",
        "d_head",
        _FUNNEL_AXES,
    ),
    "modernbert": Parts(r"layers\.\d+\.attn", ("Wqkv",), "Wo", "num_attention_heads"),
    "jina_embeddings_v3": Parts(
        r"layers\.\d+\.self_attn", ("q_proj", "k_proj", "v_proj"), "o_proj", "num_attention_heads", "head_dim"
    ),
}


def neurons_of(model: PreTrainedModel) -> Parts:
    """Where a model keeps the neurons of its feed-forward layers.

    Raises:
        DistilError: They are not known for its architecture.
    """
    parts = _NEURONS.get(model.config.model_type, _BERT_NEURONS)
    outputs = parts.find(model)
    if not outputs or not all(one.in_features == getattr(model.config, parts.number, None) for one in outputs.values()):
        raise DistilError(
            f"the feed-forward layers of a {model.config.model_type!r} model cannot be made narrower; cut layers "
            "instead, or make a student of this shape with students.from_config"
        )
    return parts


def feed_forward_size(model: PreTrainedModel) -> int | None:
    """How many neurons each feed-forward layer has; None where `neurons_of` knows no layers that can be narrower."""
    try:
        parts = neurons_of(model)
    except DistilError:
        return None
    return parts.count(model.config)


def heads_of(model: PreTrainedModel) -> Parts:
    """Where a model keeps its attention heads.

    Raises:
        DistilError: They are not known for its architecture.
    """
    parts = _HEADS.get(model.config.model_type, _BERT_HEADS)
    outputs = parts.find(model)
    whole = None if not outputs else getattr(model.config, parts.number) * parts.width(model.config)
    if whole is None or not all(one.in_features == whole for one in outputs.values()):
        raise DistilError(
            f"the attention heads of a {model.config.model_type!r} model are not known; set intermediate_size or "
            "layers instead"
        )
    return parts


def require_free_heads(model: PreTrainedModel) -> Parts:
    """`heads_of` of an architecture that can do with fewer heads of the same size.

    Raises:
        DistilError: It cannot: the size of its heads is its hidden size divided by their number.
    """
    parts = heads_of(model)
    if parts.size is None:
        raise DistilError(
            f"a {model.config.model_type!r} model cannot have fewer heads of the same size, because its configuration "
            "has no value for the size of a head; set intermediate_size or layers instead"
        )
    return parts


def keep_parts(teacher: AnyModel, parts: Parts, kept: Mapping[str, torch.Tensor]) -> AnyModel:
    """A copy of a model with some of its parts, equally many in each place.

    Args:
        teacher: The model. It is not changed.
        parts: Where the parts are.
        kept: The numbers of the parts that each place keeps, counted from 0, in ascending order.

    Raises:
        DistilError: The architecture has no model of that size.
    """
    model = teacher.model
    before, count = int(getattr(model.config, parts.number)), len(next(iter(kept.values())))
    width = parts.width(model.config)
    config = copy.deepcopy(model.config)
    setattr(config, parts.number, count)
    if parts.size is not None:
        setattr(config, parts.size, width)
    weights = dict(model.state_dict())
    in_parts = {f"{place}.{name}" for place in kept for name in parts.axes}  # one entry per part in that dimension

    def take(name: str, axis: int, chosen: torch.Tensor) -> None:
        """Keep the chosen parts of a weight, which may hold several series of them one after the other."""
        weight = weights[name]
        parted = weight.unflatten(axis, (-1, before, width if name not in in_parts else 1))
        weights[name] = parted.index_select(axis + 1, chosen.to(weight.device)).flatten(axis, axis + 2).contiguous()

    for place, chosen in kept.items():
        take(f"{place}.{parts.output}.weight", 1, chosen)
        for maker in parts.makers:
            take(f"{place}.{maker}.weight", 0, chosen)
            if f"{place}.{maker}.bias" in weights:
                take(f"{place}.{maker}.bias", 0, chosen)
        for name, axis in parts.axes.items():
            take(f"{place}.{name}", axis, chosen)
    student = new_model(model, config)
    try:
        student.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip().rstrip(".")
        raise DistilError(
            f"a {config.model_type!r} model cannot have {parts.number}={count} alone ({reason}); cut layers instead"
        ) from error
    return teacher.replace(model=student)


def _descendant(module: nn.Module, name: str) -> Any:
    for part in name.split("."):
        module = getattr(module, part, None)  # type: ignore[assignment]
    return module
