"""Bottleneck adapters: small trained modules inside the layers of a frozen encoder."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor, nn
from transformers import PreTrainedModel

from haystack_distill.errors import DistilError

# The dense layers that end a sublayer, attention and feed-forward, by their paths inside a layer: those of BERT and
# most others, of DistilBERT, ALBERT, MPNet and ModernBERT.
_SUBLAYER_ENDS = re.compile(
    r"\.\d+\.(attention\.output\.dense|output\.dense"
    r"|attention\.out_lin|ffn\.lin2"
    r"|attention\.dense|ffn_output"
    r"|attention\.attn\.o"
    r"|attn\.Wo|mlp\.Wo)$"
)
_STANDARD_DEVIATION = 0.01  # of the initial weights in the paper: an adapter starts near the identity


class AdaptedLinear(nn.Linear):
    """A dense layer with a bottleneck adapter after it: `y + up(gelu(down(y)))` of its output y.

    Houlsby et al. 2019 (arXiv 1902.00751), section 2.1. The names of the dense layer's own weights are unchanged.

    Args:
        dense: The dense layer, whose weights this one shares.
        size: Width of the bottleneck.
    """

    def __init__(self, dense: nn.Linear, size: int) -> None:
        nn.Module.__init__(self)  # nn.Linear would make new weights
        self.in_features, self.out_features = dense.in_features, dense.out_features
        self.weight, self.bias = dense.weight, dense.bias
        self.down = nn.Linear(dense.out_features, size).to(dense.weight)
        self.up = nn.Linear(size, dense.out_features).to(dense.weight)
        for projection in (self.down, self.up):
            # Twice the deviation is where the paper truncates the normal distribution.
            limit = 2 * _STANDARD_DEVIATION
            nn.init.trunc_normal_(projection.weight, std=_STANDARD_DEVIATION, a=-limit, b=limit)
            nn.init.zeros_(projection.bias)
        self.train(dense.training)

    def forward(self, input: Tensor) -> Tensor:
        """The adapted output (..., out_features) for an input (..., in_features)."""
        output = super().forward(input)
        adapted: Tensor = output + self.up(nn.functional.gelu(self.down(output)))
        return adapted


def sublayer_ends(model: PreTrainedModel) -> list[str]:
    """The names of the dense layers after which adapters are inserted: two or more for each layer of the encoder.

    Raises:
        DistilError: They are not known for this architecture.
    """
    dense = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    found = [name for name in dense if _SUBLAYER_ENDS.search(name)]
    if not found:
        raise DistilError(
            f"the ends of the sublayers of a {model.config.model_type!r} model are not known, so it cannot have "
            "adapters; choose another adaptation, such as lora"
        )
    return found


def insert_adapters(model: PreTrainedModel, names: Sequence[str], size: int) -> None:
    """Insert newly initialised adapters into a model, in place.

    Args:
        model: The model.
        names: The names of the dense layers that are adapted.
        size: Width of the bottlenecks.
    """
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, AdaptedLinear(model.get_submodule(name), size))


def adapters_of(model: nn.Module) -> dict[str, AdaptedLinear]:
    """The adapted dense layers of a model by their names; none in a plain model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, AdaptedLinear)}


def adapter_weights(model: nn.Module) -> set[str]:
    """The names of the weights that the adapters add to a model."""
    ends = ("down.weight", "down.bias", "up.weight", "up.bias")
    return {f"{name}.{end}" for name in adapters_of(model) for end in ends}


def copy_adapters(source: PreTrainedModel, target: PreTrainedModel) -> None:
    """Insert adapters into a plain model where another of the same architecture has them; their weights are new."""
    for name, module in adapters_of(source).items():
        insert_adapters(target, [name], module.down.out_features)


def require_plain(model: PreTrainedModel, consequence: str) -> None:
    """Check that a model has no adapters.

    Args:
        model: The model.
        consequence: What is not possible with adapters, for the message.

    Raises:
        DistilError: It has adapters.
    """
    if adapters_of(model):
        raise DistilError(
            f"the model has adapters, so {consequence}; train it with another adaptation, such as lora, which leaves a "
            "plain model"
        )
