"""Distillation of self-attention relations: how the queries, keys and values of a layer relate to each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from transformers import PretrainedConfig

from haystack_distill.errors import DistilError
from haystack_distill.models.outputs import (
    ModelOutputs,
    OutputRequest,
    QueryKeyValue,
    attention_width,
    require_query_key_value,
)
from haystack_distill.objectives.losses import relation_loss
from haystack_distill.objectives.method import Method, check_weights, require_teacher
from haystack_distill.objectives.objective import CORPUS, QUESTIONS, LossTerm, Objective
from haystack_distill.utils.checks import check_argument, is_integer

_WEIGHTS = ("query_query_loss_weight", "key_key_loss_weight", "value_value_loss_weight", "query_key_loss_weight")
_RELATIONS = {
    "query_query": ("queries", "queries"),
    "key_key": ("keys", "keys"),
    "value_value": ("values", "values"),
    "query_key": ("queries", "keys"),
}


@dataclass(frozen=True)
class AttentionRelations(Method):
    """Attention relations: how the queries, keys and values of one teacher layer relate to each other.

    MiniLMv2 (Wang et al. 2021, arXiv 2012.15828) and, with other weights, MiniLM (Wang et al. 2020, arXiv 2002.10957),
    on questions or on plain text. A relation is softmax(A A^T / sqrt(d)), where A are the queries, the keys or the
    values of a layer, all heads side by side, divided anew into `relation_heads` parts of d dimensions. The loss is
    KL(teacher || student), the mean over relation heads and tokens. Student and teacher may differ in width, depth and
    number of attention heads; they must have tokenizers with the same pieces (`teachers.LiveTeacher`). Labels are not
    used, and neither the layers above `student_layer` nor the question answering head are trained.

    MiniLM's attention distributions are `query_key_loss_weight`: with as many relation heads as both models have
    attention heads, softmax(Q K^T / sqrt(d)) is the attention, but for relative positions, which have no part in it.

    Args:
        teacher_layer: The teacher layer, counted from 1; None for the last. For large teachers the paper takes one
            somewhat below the last.
        student_layer: The student layer that learns it, counted from 1; None for the last.
        relation_heads: Number of relation heads, a divisor of both widths; more of them are finer. None for the
            teacher's number of attention heads, or the next smaller number that divides both widths.
        query_query_loss_weight: Weight of the relations between queries; 0 leaves it out.
        key_key_loss_weight: Weight of the relations between keys; 0 leaves it out.
        value_value_loss_weight: Weight of the relations between values; 0 leaves it out.
        query_key_loss_weight: Weight of the attention distributions, from queries to keys; 0 leaves it out.

    Raises:
        DistilError: An option is out of range, or all weights are 0.

    Example:
        >>> from transformers import BertConfig
        >>> student = BertConfig(hidden_size=384, num_attention_heads=6, num_hidden_layers=6)
        >>> AttentionRelations().objective(student, BertConfig()).relation_heads
        12
    """

    teacher_layer: int | None = None
    student_layer: int | None = None
    relation_heads: int | None = None
    query_query_loss_weight: float = 1.0
    key_key_loss_weight: float = 1.0
    value_value_loss_weight: float = 1.0
    query_key_loss_weight: float = 0.0

    def __post_init__(self) -> None:
        for name in ("teacher_layer", "student_layer", "relation_heads"):
            value = getattr(self, name)
            check_argument(name, value, value is None or is_integer(value, 1), "None or a whole number of at least 1")
        check_weights(self, *_WEIGHTS)

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weights above 0 by term."""
        weights = {name: getattr(self, f"{name}_loss_weight") for name in _RELATIONS}
        return {name: float(weight) for name, weight in weights.items() if weight > 0}

    def objective(self, student: PretrainedConfig, teacher: PretrainedConfig | None) -> AttentionRelationsObjective:
        """Create the objective; see `Method.objective`.

        Raises:
            DistilError: There is no teacher, an architecture does not provide queries, keys and values, a layer does
                not exist, or `relation_heads` does not divide both widths.
        """
        return AttentionRelationsObjective(self, student, require_teacher(self, teacher))


class AttentionRelationsObjective(Objective):
    """The objective of `AttentionRelations`. Its terms are those of "query_query", "key_key", "value_value" and
    "query_key" with a weight above 0.

    Args:
        options: The options of the method.
        student_config: The student's configuration.
        teacher_config: The teacher's configuration.

    Attributes:
        student_layer: The student layer, counted from 1.
        teacher_layer: The teacher layer, counted from 1.
        relation_heads: The number of relation heads.

    Raises:
        DistilError: See `AttentionRelations.objective`.
    """

    data = frozenset({QUESTIONS, CORPUS})

    def __init__(
        self, options: AttentionRelations, student_config: PretrainedConfig, teacher_config: PretrainedConfig
    ) -> None:
        super().__init__()
        self.weights = options.loss_weights
        for config in (student_config, teacher_config):
            require_query_key_value(config)
        self.student_layer = _layer("student", options.student_layer, student_config)
        self.teacher_layer = _layer("teacher", options.teacher_layer, teacher_config)
        self.relation_heads = _relation_heads(options.relation_heads, student_config, teacher_config)
        self.student_request = OutputRequest(query_key_value=(self.student_layer,))
        self.teacher_request = OutputRequest(query_key_value=(self.teacher_layer,))

    def forward(
        self, student: ModelOutputs, teacher: ModelOutputs | None, batch: Mapping[str, Tensor]
    ) -> dict[str, LossTerm]:
        """The unweighted terms; see `Objective.forward`.

        Raises:
            DistilError: There is no teacher, or queries, keys and values are missing.
        """
        own = _query_key_value(student, self.student_layer, "student")
        target = _query_key_value(teacher, self.teacher_layer, "teacher")
        masks = self.masks(batch)
        terms = {}
        for name in self.weights:
            first, second = _RELATIONS[name]
            student_pair, teacher_pair = ((getattr(each, first), getattr(each, second)) for each in (own, target))
            values = relation_loss(student_pair, teacher_pair, batch["attention_mask"], self.relation_heads)
            terms[name] = LossTerm(values, masks[name])
        return terms


def _layer(who: str, number: int | None, config: PretrainedConfig) -> int:
    n_layers = int(config.num_hidden_layers)
    if number is not None and number > n_layers:
        raise DistilError(f"{who}_layer is {number}, but the {who} has layers 1 to {n_layers}; take one of them")
    return n_layers if number is None else number


def _relation_heads(number: int | None, student: PretrainedConfig, teacher: PretrainedConfig) -> int:
    widths = attention_width(student), attention_width(teacher)
    common = [heads for heads in range(1, min(widths) + 1) if not any(width % heads for width in widths)]
    if number is None:
        return max(heads for heads in common if heads <= teacher.num_attention_heads)
    if number not in common:
        raise DistilError(
            f"relation_heads={number} does not divide the attention widths of student and teacher, {widths[0]} and "
            f"{widths[1]}; take one of {', '.join(map(str, common))}"
        )
    return number


def _query_key_value(outputs: ModelOutputs | None, layer: int, who: str) -> QueryKeyValue:
    if outputs is None or outputs.query_key_value is None:
        raise DistilError(
            f"attention_relations needs the {who}'s queries, keys and values; run it with the objective's request"
        )
    return outputs.query_key_value[layer]
