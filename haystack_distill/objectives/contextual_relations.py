"""Distillation of contextual relations: how hidden states relate to each other, between words and between layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad
from transformers import PretrainedConfig

from haystack_distill.errors import DistilError
from haystack_distill.models.outputs import ModelOutputs, OutputRequest, input_width
from haystack_distill.objectives.intermediate_layers import check_layer_mapping, hidden_states_of, resolve_layer_mapping
from haystack_distill.objectives.losses import mean_over_tokens
from haystack_distill.objectives.method import Method, check_weights, refuse_without_effect, require_teacher
from haystack_distill.objectives.objective import CORPUS, QUESTIONS, LossTerm, Objective
from haystack_distill.utils.checks import check_argument, is_integer

_TERMS = ("word_pair", "word_angle", "layer_pair", "layer_angle")
_SMALLEST = 1e-12  # squared length of a difference of hidden states that has a direction
_ROUNDING = 1e-5  # the same, as a share of the squared lengths of both states: float32 rounds them to a hundredth of it


@dataclass(frozen=True)
class ContextualRelations(Method):
    """Contextual relations: how the teacher's hidden states relate to each other, between words and between layers.

    Contextual knowledge distillation (CKD, Park, Kim and Yang 2021, arXiv 2109.08359), on questions or on plain text.
    The states are those of the embedding and of the mapped layers. Word relations compare the tokens of one layer,
    layer transforming relations the layers of one token:

    "word_pair", "layer_pair": the distribution over the other tokens (layers) that a softmax of the cosines gives, by
    KL(teacher || student).
    "word_angle", "layer_angle": the cosine of the angle at a token (layer) between the directions to two others, by its
    mean squared difference; of words, for the nearest `n_neighbours` tokens on each side.

    Only relations are compared: student and teacher may differ in width and number of attention heads, and there are no
    projections. They must have tokenizers with the same pieces (`teachers.LiveTeacher`). A loss of weight 0 is
    neither computed nor returned. Labels are not used, and the question answering head is not trained. The default
    weights make the gradients of the four about equal. Those in the paper's code belong to other means: over pairs of
    tokens and over layers, where this is the mean over tokens and the sum over layers.

    Args:
        layer_mapping: The teacher layer of each student layer: "uniform" (evenly spread), "last" (the last ones),
            "skip" (as uniform, without the student's last layer), or for each student layer a teacher layer, counted
            from 1, or None. See `resolve_layer_mapping`.
        word_pair_loss_weight: Weight of the cosines of two tokens; 0 leaves it out.
        word_angle_loss_weight: Weight of the angles of three tokens; 0 leaves it out.
        layer_pair_loss_weight: Weight of the cosines of two layers; 0 leaves it out.
        layer_angle_loss_weight: Weight of the angles of three layers; 0 leaves it out.
        n_neighbours: How many tokens on each side take part in a token's angles.

    Raises:
        DistilError: An option is out of range, all weights are 0, or `n_neighbours` would have no effect.

    Example:
        >>> from transformers import BertConfig
        >>> student = BertConfig(hidden_size=384, num_attention_heads=6, num_hidden_layers=4)
        >>> ContextualRelations().objective(student, BertConfig()).layer_mapping
        [3, 6, 9, 12]
    """

    layer_mapping: Literal["uniform", "last", "skip"] | Sequence[int | None] = "uniform"
    word_pair_loss_weight: float = 10.0
    word_angle_loss_weight: float = 3.0
    layer_pair_loss_weight: float = 10.0
    layer_angle_loss_weight: float = 3.0
    n_neighbours: int = 10

    def __post_init__(self) -> None:
        check_layer_mapping(self.layer_mapping)
        check_weights(self, *(f"{name}_loss_weight" for name in _TERMS))
        number = self.n_neighbours
        check_argument("n_neighbours", number, is_integer(number, 1), "a whole number of at least 1")
        if not self.word_angle_loss_weight:
            refuse_without_effect(self, "n_neighbours", "word_angle_loss_weight=0 leaves out the angles of words")

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weights above 0 by term."""
        weights = {name: getattr(self, f"{name}_loss_weight") for name in _TERMS}
        return {name: float(weight) for name, weight in weights.items() if weight > 0}

    def objective(self, student: PretrainedConfig, teacher: PretrainedConfig | None) -> ContextualRelationsObjective:
        """Create the objective; see `Method.objective`.

        Raises:
            DistilError: There is no teacher, the mapping does not suit the two depths, or layers cannot be compared
                with each other, because only one is mapped or one of the models has states of different widths.
        """
        return ContextualRelationsObjective(self, student, require_teacher(self, teacher))


class ContextualRelationsObjective(Objective):
    """The objective of `ContextualRelations`. Its terms are those of "word_pair", "word_angle", "layer_pair" and
    "layer_angle" with a weight above 0.

    Args:
        options: The options of the method.
        student_config: The student's configuration.
        teacher_config: The teacher's configuration.

    Attributes:
        layer_mapping: For each student layer a teacher layer (1 = first) or None.

    Raises:
        DistilError: See `ContextualRelations.objective`.
    """

    data = frozenset({QUESTIONS, CORPUS})
    student_request = teacher_request = OutputRequest(hidden_states=True)

    def __init__(
        self, options: ContextualRelations, student_config: PretrainedConfig, teacher_config: PretrainedConfig
    ) -> None:
        super().__init__()
        self.weights = options.loss_weights
        self.n_neighbours = options.n_neighbours
        depths = student_config.num_hidden_layers, teacher_config.num_hidden_layers
        self.layer_mapping = resolve_layer_mapping(options.layer_mapping, *depths)
        pairs = [(number, layer) for number, layer in enumerate(self.layer_mapping, start=1) if layer is not None]
        self._pairs = [(0, 0), *pairs]  # state 0 is the embedding
        if self.weights.keys() & {"layer_pair", "layer_angle"}:
            _require_comparable_layers(len(pairs), student_config, teacher_config)

    def forward(
        self, student: ModelOutputs, teacher: ModelOutputs | None, batch: Mapping[str, Tensor]
    ) -> dict[str, LossTerm]:
        """The unweighted terms; see `Objective.forward`.

        Raises:
            DistilError: There is no teacher, or hidden states are missing.
        """
        mask, masks = batch["attention_mask"], self.masks(batch)
        own_states, their_states = hidden_states_of(student, "student"), hidden_states_of(teacher, "teacher")
        own = [own_states[number] for number, _ in self._pairs]
        theirs = [their_states[layer] for _, layer in self._pairs]
        losses: dict[str, Tensor] = {}
        if "word_pair" in self.weights:
            losses["word_pair"] = _sum([word_pair_loss(*states, mask) for states in zip(own, theirs, strict=True)])
        if "word_angle" in self.weights:
            near = self.n_neighbours
            losses["word_angle"] = _sum(
                [word_angle_loss(*states, mask, near) for states in zip(own, theirs, strict=True)]
            )
        if self.weights.keys() & {"layer_pair", "layer_angle"}:
            own_layers, their_layers = torch.stack(own, dim=2), torch.stack(theirs, dim=2)
            if "layer_pair" in self.weights:
                losses["layer_pair"] = layer_pair_loss(own_layers, their_layers, mask)
            if "layer_angle" in self.weights:
                losses["layer_angle"] = layer_angle_loss(own_layers, their_layers, mask)
        return {name: LossTerm(values, masks[name]) for name, values in losses.items()}


def _sum(losses: Sequence[Tensor]) -> Tensor:
    return sum(losses[1:], losses[0])


def _require_comparable_layers(n_mapped: int, *configs: PretrainedConfig) -> None:
    """Check that the layers of a model can be compared with each other.

    Raises:
        DistilError: Only one layer is mapped, or the embedding has another width than the layers.
    """
    remedy = "set layer_pair_loss_weight=0 and layer_angle_loss_weight=0"
    if n_mapped < 2:
        raise DistilError(
            f"layer relations compare a layer with two others, but only one layer of the student is mapped; {remedy}"
        )
    for config in configs:
        if input_width(config) != config.hidden_size:
            raise DistilError(
                f"layer relations need states of one width, but in a {config.model_type} the first layer is given "
                f"{input_width(config)} and returns {config.hidden_size}; {remedy}"
            )


def word_pair_loss(student: Tensor, teacher: Tensor, attention_mask: Tensor) -> Tensor:
    """KL(teacher || student) of softmaxes over the cosines of each token with the others, mean over tokens.

    The pair-wise word relation of contextual knowledge distillation (Park et al. 2021, arXiv 2109.08359).

    Args:
        student: Hidden states (B, L, H).
        teacher: (B, L, H) of any width.
        attention_mask: 1 or True for tokens, 0 or False for padding, (B, L).

    Returns:
        The mean divergence of each window in nats, (B,); 0 for a window of less than three tokens.
    """
    valid = attention_mask.bool()
    others = valid[:, :, None] & valid[:, None, :] & ~torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
    by_token = _divergence(_cosines(student), _cosines(teacher.detach()), others)
    return mean_over_tokens(by_token, attention_mask)


def layer_pair_loss(student: Tensor, teacher: Tensor, attention_mask: Tensor) -> Tensor:
    """As `word_pair_loss`, over the cosines of each layer with the others for one token; mean over layers and tokens.

    Args:
        student: Hidden states (B, L, K, H) of K layers.
        teacher: (B, L, K, H) of any width.
        attention_mask: 1 or True for tokens, 0 or False for padding, (B, L).

    Returns:
        The mean divergence of each window in nats, (B,).
    """
    n_layers = student.shape[2]
    others = ~torch.eye(n_layers, dtype=torch.bool, device=student.device)
    by_token = _divergence(_cosines(student), _cosines(teacher.detach()), others).mean(dim=2)
    return mean_over_tokens(by_token, attention_mask)


def layer_angle_loss(student: Tensor, teacher: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean squared difference of the cosines of the angles between three layers, for each token.

    The triple-wise layer transforming relation of contextual knowledge distillation (Park et al. 2021, arXiv
    2109.08359): the angle at one layer's state between the directions to those of two others.

    Args:
        student: Hidden states (B, L, K, H) of K layers, three or more.
        teacher: (B, L, K, H) of any width.
        attention_mask: 1 or True for tokens, 0 or False for padding, (B, L).

    Returns:
        The mean of each window over tokens and triples, (B,).
    """
    same = torch.eye(student.shape[2], dtype=torch.bool, device=student.device)
    distinct = ~(_first(same, 1) | _second(same, 1))  # a layer has no direction to itself
    difference = (_layer_angles(student) - _layer_angles(teacher.detach())).masked_fill(~distinct, 0.0)
    by_token = difference.square().sum(dim=(2, 3)) / distinct.sum()
    return mean_over_tokens(by_token, attention_mask)


def word_angle_loss(student: Tensor, teacher: Tensor, attention_mask: Tensor, n_neighbours: int) -> Tensor:
    """Mean squared difference of the cosines of the angles at each token between two tokens that are near it.

    The triple-wise word relation of contextual knowledge distillation (Park et al. 2021, arXiv 2109.08359).

    Args:
        student: Hidden states (B, L, H).
        teacher: (B, L, H) of any width.
        attention_mask: 1 or True for tokens, 0 or False for padding, (B, L).
        n_neighbours: How many tokens on each side are near.

    Returns:
        The mean of each window over triples of tokens, (B,); 0 for a window of less than three tokens.
    """
    valid = attention_mask.bool()
    own, target = (_word_angles(states, valid, n_neighbours) for states in (student, teacher.detach()))
    triples = _triples(valid, n_neighbours)
    squares = (own - target).masked_fill(~triples, 0.0).square()
    return squares.sum(dim=(1, 2)) / triples.sum(dim=(1, 2)).clamp(min=1)


def _cosines(states: Tensor) -> Tensor:
    """The cosines of states (..., K, H) with each other, (..., K, K), in float32."""
    with torch.autocast(states.device.type, enabled=False):
        directions = normalize(states.float(), dim=-1)
        return directions @ directions.transpose(-1, -2)


def _divergence(student: Tensor, teacher: Tensor, others: Tensor) -> Tensor:
    """KL(teacher || student) of softmaxes over the last dimension of cosines, where `others` is True."""
    # Cosines are too small to overflow, so no largest one has to be found and taken off first.
    weights = teacher.exp() * others
    own_sum, their_sum = (each.sum(dim=-1).clamp(min=_SMALLEST) for each in (student.exp() * others, weights))
    expected = ((teacher - student) * weights).sum(dim=-1) / their_sum
    return expected + own_sum.log() - their_sum.log()


def _layer_angles(states: Tensor) -> Tensor:
    """Cosines of the angles at each of K states between the directions to a pair of them: (B, L, K, H) to
    (B, L, K, pairs), where the pairs are those of `_first` and `_second`.
    """
    with torch.autocast(states.device.type, enabled=False):
        centred = states.float() - states.float().mean(dim=2, keepdim=True)  # smaller products are rounded less
        products = centred @ centred.transpose(2, 3)
    own = products.diagonal(dim1=2, dim2=3)
    inverse = _inverse_distance(own[:, :, :, None] + own[:, :, None, :], products)
    n_states = states.shape[2]
    between = torch.cat([products[:, :, place, place + 1 :] for place in range(n_states - 1)], dim=2)
    inner = between[:, :, None, :] - _first(products, 3) - _second(products, 3) + own[:, :, :, None]
    return inner * _first(inverse, 3) * _second(inverse, 3)


def _word_angles(states: Tensor, valid: Tensor, reach: int) -> Tensor:
    """Cosines of the angles at each token between the directions to two that are near it, (B, pairs, L).

    The pairs are those of `_first` and `_second` of the offsets from -reach to reach. From the products of the tokens
    with each other, so that no difference of states is in memory; by views and slices, whose gradients are added up in
    the same order in every run.
    """
    length = states.shape[1]
    with torch.autocast(states.device.type, enabled=False):
        kept = states.float().masked_fill(~valid[:, :, None], 0.0)
        mean = kept.sum(dim=1, keepdim=True) / valid.sum(dim=1)[:, None, None]
        centred = (kept - mean).masked_fill(~valid[:, :, None], 0.0)  # smaller products are rounded less
        products = pad(centred @ centred.transpose(1, 2), (reach, 3 * reach, reach, 3 * reach))
    # By distance d and token i the product of tokens i and i + d, with `reach` more on the left and on the right.
    width = length + 2 * reach
    near = torch.stack([products.diagonal(d, dim1=1, dim2=2)[:, :width] for d in range(2 * reach + 1)], dim=1)
    offsets = range(-reach, reach + 1)

    def at(distances: slice, offset: int) -> Tensor:
        return near[:, distances, reach + offset : reach + offset + length]

    own = torch.cat([at(slice(0, 1), offset) for offset in offsets], dim=1)  # of token i + offset with itself
    centre = at(slice(0, 1), 0)
    towards = torch.cat(
        [at(slice(abs(offset), abs(offset) + 1), min(offset, 0)) for offset in offsets], dim=1
    )  # of token i with token i + offset
    between = torch.cat([at(slice(1, reach - offset + 1), offset) for offset in offsets], dim=1)  # of both others
    inverse = _inverse_distance(own + centre, towards)
    inner = between - _first(towards, 1) - _second(towards, 1) + centre
    return inner * _first(inverse, 1) * _second(inverse, 1)


def _inverse_distance(squares: Tensor, products: Tensor) -> Tensor:
    """1 / |x - y| from |x|^2 + |y|^2 and the product of x and y; 0 where x and y are equal but for rounding.

    Words that repeat have equal embeddings where a model adds no positions to them: there is no direction, and what
    is left of the difference is noise.
    """
    squared = squares - 2 * products
    return squared.clamp(min=_SMALLEST).rsqrt().masked_fill(squared <= _ROUNDING * squares, 0.0)


def _first(values: Tensor, dim: int) -> Tensor:
    """The value of the first of each pair of places along a dimension: place 0 with all later ones, place 1, ..."""
    n_places = values.shape[dim]
    repeated = (
        values.narrow(dim, place, 1).expand([n_places - 1 - place if d == dim else -1 for d in range(values.dim())])
        for place in range(n_places - 1)
    )
    return torch.cat(list(repeated), dim=dim)


def _second(values: Tensor, dim: int) -> Tensor:
    """The value of the second of each pair; see `_first`."""
    n_places = values.shape[dim]
    return torch.cat([values.narrow(dim, place + 1, n_places - 1 - place) for place in range(n_places - 1)], dim=dim)


def _triples(valid: Tensor, reach: int) -> Tensor:
    """Which angles of `_word_angles` are between three tokens, (B, pairs, L)."""
    length = valid.shape[1]
    padded = pad(valid, (reach, reach))
    there = torch.stack([padded[:, place : place + length] for place in range(2 * reach + 1)], dim=1)
    there[:, reach] = False  # the token itself has no direction
    return _first(there, 1) & _second(there, 1) & valid[:, None, :]
