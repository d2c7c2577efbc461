"""Running a model and collecting its logits, hidden states and attention scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from haystack_distill.errors import DistilError


@dataclass(frozen=True)
class OutputRequest:
    """Which outputs of a model an objective needs; requests merge with `|`. An empty request is false.

    Attributes:
        logits: start and end logits of a reader, token logits of a masked language model.
        hidden_states: the embedding output and the hidden states of all layers.
        attention_scores: the layers, counted from 1, whose attention scores are needed.
    """

    logits: bool = False
    hidden_states: bool = False
    attention_scores: tuple[int, ...] = ()

    def __or__(self, other: OutputRequest) -> OutputRequest:
        return OutputRequest(
            self.logits or other.logits,
            self.hidden_states or other.hidden_states,
            tuple(sorted({*self.attention_scores, *other.attention_scores})),
        )

    def __bool__(self) -> bool:
        return self != OutputRequest()

    @property
    def beyond_logits(self) -> bool:
        """Whether the model itself has to run in the step: nothing but logits is ever cached."""
        return replace(self, logits=False) != OutputRequest()


@dataclass
class ModelOutputs:
    """The outputs of a model for a batch of windows.

    Attributes:
        start_logits: shape (B, L), logits of the answer's first token; None for a model without such a head.
        end_logits: shape (B, L), logits of the answer's last token; as `start_logits`.
        token_logits: shape (B, L, V), logits of a masked language model over its vocabulary, or None.
        hidden_states: one more than there are layers, each (B, L, H). Index 0 is what the first layer is given, indices
            1..N what the layers return. For ALBERT and ELECTRA, whose word embeddings may be narrower than the encoder,
            index 0 is the embedding after its projection to the encoder's width H.
        attention_scores: by layer number (1-based), the scores before the softmax, q k^T / sqrt(head size), without the
            padding mask: (B, heads, L, L), float32.
    """

    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    token_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attention_scores: dict[int, Tensor] | None = None


class _AttentionPaths(NamedTuple):
    """Where an architecture keeps its attention: a module list, and query and key projection inside each entry."""

    layers: str
    query: str
    key: str


_BERT = _AttentionPaths("encoder.layer", "attention.self.query", "attention.self.key")

# By `config.model_type`; paths start at `model.base_model`. The same in transformers 4 and 5. Only models that score
# with nothing but q k^T / sqrt(d): relative positions or rotations would make the captured products something else.
_ATTENTION_PATHS = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "distilbert": _AttentionPaths("transformer.layer", "attention.q_lin", "attention.k_lin"),
    "albert": _AttentionPaths(
        "encoder.albert_layer_groups", "albert_layers.0.attention.query", "albert_layers.0.attention.key"
    ),
}


def require_attention_scores(config: PretrainedConfig) -> None:
    """Check that `run_model` can capture the attention scores of such a model.

    Args:
        config: the model's configuration.

    Raises:
        DistilError: the architecture is not known here, or computes its scores with more than queries and keys.
    """
    remedy = "set attention_loss_weight=0 to learn from the hidden states alone"
    if config.model_type not in _ATTENTION_PATHS:
        known = ", ".join(sorted(_ATTENTION_PATHS))
        raise DistilError(
            f"attention scores of a {config.model_type!r} model are not available (only of {known}); {remedy}"
        )
    # Gone from transformers 5, where such a configuration keeps the field but the model ignores it.
    positions = getattr(config, "position_embedding_type", None) or "absolute"
    if positions != "absolute":
        raise DistilError(
            f"attention scores of a {config.model_type!r} model with {positions!r} positions are not available; "
            f"{remedy}"
        )
    if getattr(config, "inner_group_num", 1) != 1:
        raise DistilError(
            f"attention scores of an ALBERT model with inner_group_num={config.inner_group_num} are not available, "
            f"because its layers hold several attentions each; {remedy}"
        )


def run_model(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], request: OutputRequest = OutputRequest(logits=True)
) -> ModelOutputs:
    """Run a model with its own (fast) attention kernel.

    Fast kernels never hold the attention scores, so the requested ones are computed here from the queries and keys,
    which forward hooks pick up. The hooks are gone when this returns or raises. Gradients flow through the scores.

    Args:
        model: a question answering model, a masked language model or an encoder.
        inputs: the tensors the model is called with: input_ids, attention_mask, maybe token_type_ids, each (B, L).
        request: which outputs to return. Logits are there wherever the model has a head, requested or not.

    Returns:
        The outputs; hidden_states and attention_scores are None unless requested.

    Raises:
        DistilError: the model does not have what is requested.
    """
    projections = _projections(model, request.attention_scores) if request.attention_scores else {}
    # What a hook keeps is the projection's output and no more: arithmetic inside a checkpointed layer would break
    # gradient checkpointing, which runs the layer again without the hooks.
    captured: dict[nn.Module, list[Tensor]] = {
        projection: [] for query, key, _ in projections.values() for projection in (query, key)
    }

    def capture(module: nn.Module, _args: Any, output: Tensor) -> None:
        captured[module].append(output)

    handles = [module.register_forward_hook(capture) for module in captured]
    try:
        outputs = model(**inputs, output_hidden_states=request.hidden_states, output_attentions=False, return_dict=True)
    finally:
        for handle in handles:
            handle.remove()

    scores = {}
    head_size = model.config.hidden_size // model.config.num_attention_heads
    for number, (query, key, repetition) in projections.items():
        for projection in (query, key):
            _require_gradient(projection, captured[projection][repetition])
        scores[number] = _scores(captured[query][repetition], captured[key][repetition], head_size)

    return ModelOutputs(
        start_logits=getattr(outputs, "start_logits", None),
        end_logits=getattr(outputs, "end_logits", None),
        token_logits=getattr(outputs, "logits", None),
        hidden_states=_hidden_states(model, outputs) if request.hidden_states else None,
        attention_scores=scores if projections else None,
    )


def _projections(model: PreTrainedModel, numbers: Sequence[int]) -> dict[int, tuple[nn.Module, nn.Module, int]]:
    """For each layer number its query projection, its key projection, and how often they ran before this layer."""
    config = model.config
    require_attention_scores(config)
    paths = _ATTENTION_PATHS[config.model_type]
    n_layers = config.num_hidden_layers
    stored = list(model.base_model.get_submodule(paths.layers).children())
    # ALBERT stores fewer layers than it runs; this is its own arithmetic. Elsewhere it is the identity.
    used = [int(i / (n_layers / len(stored))) for i in range(n_layers)]
    found = {}
    for number in numbers:
        if not 1 <= number <= n_layers:
            raise DistilError(f"there is no layer {number}: the {config.model_type!r} model has layers 1 to {n_layers}")
        index = used[number - 1]
        layer = stored[index]
        repetition = used[: number - 1].count(index)
        found[number] = (layer.get_submodule(paths.query), layer.get_submodule(paths.key), repetition)
    return found


def _require_gradient(projection: nn.Module, output: Tensor) -> None:
    trainable = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in projection.parameters())
    if trainable and not output.requires_grad:
        raise DistilError(
            "reentrant gradient checkpointing hides the attention scores from the gradient; use "
            "model.gradient_checkpointing_enable({'use_reentrant': False}), or attention_loss_weight=0"
        )


def _scores(query: Tensor, key: Tensor, head_size: int) -> Tensor:
    """(B, L, heads * head_size) queries and keys to float32 scores (B, heads, L, L), whatever autocast is on."""
    with torch.autocast(query.device.type, enabled=False):
        by_head = [x.float().view(*x.shape[:2], -1, head_size).transpose(1, 2) for x in (query, key)]
        return torch.matmul(by_head[0] / math.sqrt(head_size), by_head[1].transpose(2, 3))


def _hidden_states(model: PreTrainedModel, outputs: Any) -> tuple[Tensor, ...]:
    states = getattr(outputs, "hidden_states", None) or ()
    expected = model.config.num_hidden_layers + 1
    if len(states) != expected:
        raise DistilError(
            f"the {model.config.model_type!r} model returns {len(states)} hidden states, not the {expected} of an "
            f"encoder (embedding and {expected - 1} layers); distil its prediction layer instead"
        )
    return tuple(states)
