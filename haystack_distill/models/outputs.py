"""Running a model and collecting its logits, hidden states, attention scores, and queries, keys and values."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from haystack_distill.errors import DistilError
from haystack_distill.models.bilstm_config import MODEL_TYPE
from haystack_distill.models.early_exit import EarlyExitModel
from haystack_distill.models.matching import question_and_context
from haystack_distill.utils.families import EARLY_EXIT, family_of


@dataclass(frozen=True)
class OutputRequest:
    """Which outputs of a model an objective needs; requests merge with `|`. An empty request is false.

    Attributes:
        logits: start and end logits of a reader, token logits of a masked language model.
        hidden_states: the embedding output and the hidden states of all layers.
        attention_scores: the layers, counted from 1, whose attention scores are needed.
        query_key_value: the layers, counted from 1, whose queries, keys and values are needed.
        exits: start and end logits of each layer of a reader with early exits, and the log-odds of its matchers.
        exit_gradients: whether the gradient of `exits` reaches the layers, and not the branches alone.
    """

    logits: bool = False
    hidden_states: bool = False
    attention_scores: tuple[int, ...] = ()
    query_key_value: tuple[int, ...] = ()
    exits: bool = False
    exit_gradients: bool = False

    def __or__(self, other: OutputRequest) -> OutputRequest:
        return OutputRequest(
            self.logits or other.logits,
            self.hidden_states or other.hidden_states,
            tuple(sorted({*self.attention_scores, *other.attention_scores})),
            tuple(sorted({*self.query_key_value, *other.query_key_value})),
            self.exits or other.exits,
            self.exit_gradients or other.exit_gradients,
        )

    def __bool__(self) -> bool:
        return self != OutputRequest()

    @property
    def beyond_logits(self) -> bool:
        """Whether the model itself has to run in the step: nothing but logits is ever cached."""
        return replace(self, logits=False) != OutputRequest()


class QueryKeyValue(NamedTuple):
    """Queries, keys and values of a layer as its projections give them, in their precision, heads side by side.

    Attributes:
        queries: (B, L, H), where H is the width of the attention: heads * head size.
        keys: (B, L, H).
        values: (B, L, H).
    """

    queries: Tensor
    keys: Tensor
    values: Tensor


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
        attention_scores: by layer number (1-based), the scores before the softmax, q k^T / sqrt(head size) and, for
            MPNet, its relative position bias, without the padding mask: (B, heads, L, L), float32.
        query_key_value: by layer number (1-based), the queries, keys and values.
        exits: start and end logits, each (B, L), of the branch of each layer but the last, from the first layer on.
        matches: log-odds that a window holds the answer, each (B,), by the matchers of the embeddings and of each layer
            but the last; none for a reader without matchers.
    """

    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    token_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attention_scores: dict[int, Tensor] | None = None
    query_key_value: dict[int, QueryKeyValue] | None = None
    exits: tuple[tuple[Tensor, Tensor], ...] | None = None
    matches: tuple[Tensor, ...] | None = None


class _AttentionPaths(NamedTuple):
    """Where an architecture keeps its attention.

    Attributes:
        layers: A module list.
        attention: The attention inside each of its entries.
        projections: The projections of queries, keys and values inside that.
        position_bias: An embedding whose output, (L, L, heads), is added to the scores of every layer.
        scores: Whether the scores are q k^T / sqrt(head size) and the position bias; with other relative positions or
            rotations the product would be something else.
    """

    layers: str
    attention: str
    projections: tuple[str, str, str] = ("query", "key", "value")
    position_bias: str | None = None
    scores: bool = True


_BERT = _AttentionPaths("encoder.layer", "attention.self")

# By `config.model_type`; paths start at `model.base_model`. The same in transformers 4 and 5.
_ATTENTION_PATHS = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "mobilebert": _BERT,
    "distilbert": _AttentionPaths("transformer.layer", "attention", ("q_lin", "k_lin", "v_lin")),
    "albert": _AttentionPaths("encoder.albert_layer_groups", "albert_layers.0.attention"),
    "mpnet": _AttentionPaths(
        "encoder.layer", "attention.attn", ("q", "k", "v"), position_bias="encoder.relative_attention_bias"
    ),
    "deberta-v2": _AttentionPaths(
        "encoder.layer", "attention.self", ("query_proj", "key_proj", "value_proj"), scores=False
    ),
}


def require_attention_scores(config: PretrainedConfig) -> None:
    """Check that `run_model` can capture the attention scores of such a model.

    Args:
        config: the model's configuration.

    Raises:
        DistilError: the architecture is not known here, or computes its scores with more than queries, keys and a bias.
    """
    remedy = "set attention_loss_weight=0 to learn from the hidden states alone"
    paths = _ATTENTION_PATHS.get(family_of(config))
    if paths is None or not paths.scores:
        known = ", ".join(sorted(name for name, entry in _ATTENTION_PATHS.items() if entry.scores))
        also = "" if paths is None else ", or use the method attention_relations"
        raise DistilError(
            f"attention scores of a {config.model_type!r} model are not available (only of {known}); {remedy}{also}"
        )
    # Gone from transformers 5, where such a configuration keeps the field but the model ignores it.
    positions = getattr(config, "position_embedding_type", None) or "absolute"
    if positions != "absolute":
        raise DistilError(
            f"attention scores of a {config.model_type!r} model with {positions!r} positions are not available; "
            f"{remedy}, or use the method attention_relations"
        )
    _refuse_inner_groups(config, "attention scores", remedy)


def require_query_key_value(config: PretrainedConfig) -> None:
    """Check that `run_model` can capture the queries, keys and values of such a model.

    Args:
        config: the model's configuration.

    Raises:
        DistilError: the architecture is not known here.
    """
    remedy = "learn from the hidden states, with the method intermediate_layers and attention_loss_weight=0"
    if family_of(config) not in _ATTENTION_PATHS:
        raise DistilError(
            f"queries, keys and values of a {config.model_type!r} model are not available (only of "
            f"{', '.join(sorted(_ATTENTION_PATHS))}); {remedy}"
        )
    _refuse_inner_groups(config, "queries, keys and values", remedy)


def _refuse_inner_groups(config: PretrainedConfig, what: str, remedy: str) -> None:
    if getattr(config, "inner_group_num", 1) != 1:
        raise DistilError(
            f"{what} of an ALBERT model with inner_group_num={config.inner_group_num} are not available, "
            f"because its layers hold several attentions each; {remedy}"
        )


def attention_width(config: PretrainedConfig) -> int:
    """The width of a layer's queries, keys and values; MobileBERT's is not that of its hidden states."""
    return int(config.true_hidden_size if config.model_type == "mobilebert" else config.hidden_size)


def input_width(config: PretrainedConfig) -> int:
    """The width of hidden state 0, what the first layer is given; a BiLSTM reader's is not that of the other states."""
    return int(config.embedding_size if config.model_type == MODEL_TYPE else config.hidden_size)


def run_model(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], request: OutputRequest = OutputRequest(logits=True)
) -> ModelOutputs:
    """Run a model with its own (fast) attention kernel.

    Fast kernels never hold the attention scores, so the requested ones are computed here from the queries and keys,
    which forward hooks pick up. The hooks are gone when this returns or raises. Gradients flow through the scores and
    through queries, keys and values.

    Args:
        model: a question answering model, a masked language model or an encoder.
        inputs: the tensors the model is called with: input_ids, attention_mask, maybe token_type_ids, each (B, L).
        request: which outputs to return. Logits are there wherever the model has a head, requested or not.

    Returns:
        The outputs; hidden_states, attention_scores, query_key_value and exits are None unless requested.

    Raises:
        DistilError: the model does not have what is requested.
    """
    layers = _attention_layers(model, request)
    # What a hook keeps is the module's output and no more: arithmetic inside a checkpointed layer would break
    # gradient checkpointing, which runs the layer again without the hooks.
    captured: dict[nn.Module, list[Tensor]] = {}
    for number, layer in layers.items():
        captured |= {module: [] for module in (layer.query, layer.key)}
        if number in request.query_key_value:
            captured[layer.value] = []
        if number in request.attention_scores and layer.position_bias is not None:
            captured[layer.position_bias] = []

    def capture(module: nn.Module, _args: Any, output: Tensor) -> None:
        captured[module].append(output)

    handles = [module.register_forward_hook(capture) for module in captured]
    with_states = request.hidden_states or request.exits
    # Where nothing but branches learns, what they learn from is without dropout and has no gradient.
    frozen = _unchanged(model) if request == OutputRequest(exits=True) else contextlib.nullcontext()
    try:
        with frozen:
            outputs = model(**inputs, output_hidden_states=with_states, output_attentions=False, return_dict=True)
    finally:
        for handle in handles:
            handle.remove()

    scores, query_key_value = {}, {}
    for number in request.attention_scores:
        layer = layers[number]
        query, key = layer.output(layer.query, captured), layer.output(layer.key, captured)
        scores[number] = dot_product_scores(query, key, model.config.num_attention_heads)
        if layer.position_bias is not None:
            bias = captured[layer.position_bias][0]  # once for all layers
            scores[number] = scores[number] + bias.float().permute(2, 0, 1)
    for number in request.query_key_value:
        layer = layers[number]
        projections = (layer.query, layer.key, layer.value)
        query_key_value[number] = QueryKeyValue(*(layer.output(projection, captured) for projection in projections))

    exits, matches = _exits(model, inputs, outputs, request) if request.exits else (None, None)
    return ModelOutputs(
        start_logits=getattr(outputs, "start_logits", None),
        end_logits=getattr(outputs, "end_logits", None),
        token_logits=getattr(outputs, "logits", None),
        hidden_states=_hidden_states(model, outputs) if request.hidden_states else None,
        attention_scores=scores or None,
        query_key_value=query_key_value or None,
        exits=exits,
        matches=matches,
    )


def at_places(outputs: ModelOutputs, places: Tensor) -> ModelOutputs:
    """The outputs of a question answering model or an encoder at some of its tokens.

    Args:
        outputs: Of B windows of M tokens.
        places: Positions among the M tokens, (B, L).

    Returns:
        Outputs of L tokens in place of M; of attention scores both dimensions.
    """
    rows = torch.arange(len(places), device=places.device)[:, None]

    def chosen(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[rows, places]

    def pairs(scores: Tensor) -> Tensor:
        by_query = scores.transpose(1, 2)[rows, places]  # (B, L, heads, M)
        return by_query.permute(0, 3, 1, 2)[rows, places].permute(0, 3, 2, 1)

    states, scores, query_key_value = outputs.hidden_states, outputs.attention_scores, outputs.query_key_value
    return ModelOutputs(
        start_logits=chosen(outputs.start_logits),
        end_logits=chosen(outputs.end_logits),
        hidden_states=None if states is None else tuple(state[rows, places] for state in states),
        attention_scores=None if scores is None else {layer: pairs(found) for layer, found in scores.items()},
        query_key_value=None
        if query_key_value is None
        else {
            layer: QueryKeyValue(*(part[rows, places] for part in found)) for layer, found in query_key_value.items()
        },
    )


def require_exits(config: PretrainedConfig) -> None:
    """Check that a reader has early exits.

    Args:
        config: its configuration.

    Raises:
        DistilError: it has none.
    """
    if not str(config.model_type).startswith(EARLY_EXIT):
        raise DistilError(
            f"a {config.model_type!r} model has no early exits; make a reader that has with students.early_exit"
        )


@contextlib.contextmanager
def _unchanged(model: PreTrainedModel) -> Iterator[None]:
    """The context in which a model runs as when it answers: without dropout and gradients."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _exits(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], outputs: Any, request: OutputRequest
) -> tuple[tuple[tuple[Tensor, Tensor], ...], tuple[Tensor, ...]]:
    """What branches and matchers make of the hidden states."""
    require_exits(model.config)
    assert isinstance(model, EarlyExitModel)
    states = [one if request.exit_gradients else one.detach() for one in _hidden_states(model, outputs)[:-1]]
    exits = []
    for branch, hidden in zip(model.branches, states[1:], strict=True):
        start, end = branch(hidden).unbind(dim=-1)
        exits.append((start, end))
    masks = question_and_context(inputs["input_ids"], inputs["attention_mask"])
    # No matchers, or one for each.
    matches = [matcher(hidden, *masks) for matcher, hidden in zip(model.matchers, states, strict=False)]
    return tuple(exits), tuple(matches)


class _AttentionLayer(NamedTuple):
    """The modules of a layer's attention, and how often they ran before this layer (ALBERT's layers share them)."""

    query: nn.Module
    key: nn.Module
    value: nn.Module
    position_bias: nn.Module | None
    repetition: int

    def output(self, projection: nn.Module, captured: Mapping[nn.Module, Sequence[Tensor]]) -> Tensor:
        """What one of the projections returned in this layer, (B, L, H)."""
        # DeBERTa projects its relative positions with the same modules, after the tokens of the layer.
        found = captured[projection][self.repetition]
        trainable = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in projection.parameters())
        if trainable and not found.requires_grad:
            raise DistilError(
                "reentrant gradient checkpointing hides attention scores, queries, keys and values from the gradient; "
                "use model.gradient_checkpointing_enable({'use_reentrant': False}), or learn from hidden states alone "
                "(intermediate_layers with attention_loss_weight=0)"
            )
        return found


def _attention_layers(model: PreTrainedModel, request: OutputRequest) -> dict[int, _AttentionLayer]:
    """The attention of each layer, by number, whose scores or queries, keys and values are requested."""
    config = model.config
    if request.attention_scores:
        require_attention_scores(config)
    if request.query_key_value:
        require_query_key_value(config)
    numbers = sorted({*request.attention_scores, *request.query_key_value})
    if not numbers:
        return {}
    paths = _ATTENTION_PATHS[family_of(config)]
    base, n_layers = model.base_model, config.num_hidden_layers
    stored = list(base.get_submodule(paths.layers).children())
    # ALBERT stores fewer layers than it runs; this is its own arithmetic. Elsewhere it is the identity.
    used = [int(i / (n_layers / len(stored))) for i in range(n_layers)]
    bias = None if paths.position_bias is None else base.get_submodule(paths.position_bias)
    found = {}
    for number in numbers:
        if not 1 <= number <= n_layers:
            raise DistilError(f"there is no layer {number}: the {config.model_type!r} model has layers 1 to {n_layers}")
        index = used[number - 1]
        attention = stored[index].get_submodule(paths.attention)
        query, key, value = (attention.get_submodule(name) for name in paths.projections)
        found[number] = _AttentionLayer(query, key, value, bias, used[: number - 1].count(index))
    return found


def dot_product_scores(first: Tensor, second: Tensor, heads: int) -> Tensor:
    """The scaled dot products of each token with each other token, by head: x y^T / sqrt(head size).

    Args:
        first: (B, L, H), such as queries; H is a multiple of `heads`.
        second: (B, L, H), such as keys.
        heads: Number of equal parts that H is divided into.

    Returns:
        (B, heads, L, L), float32, whatever autocast is on.
    """
    with torch.autocast(first.device.type, enabled=False):
        by_head = [x.float().view(*x.shape[:2], heads, -1).transpose(1, 2) for x in (first, second)]
        head_size = by_head[0].shape[-1]
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
