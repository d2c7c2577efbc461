"""Distillation of intermediate layers, with the teacher's embeddings, hidden states and attention scores as targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from transformers import PretrainedConfig

from haystack_distill.errors import DistilError
from haystack_distill.models.outputs import ModelOutputs, OutputRequest, input_width, require_attention_scores
from haystack_distill.objectives.losses import (
    attention_kl_div_loss,
    attention_score_loss,
    cosine_loss,
    hidden_state_loss,
    mean_attention_loss,
)
from haystack_distill.objectives.method import Method, check_weights, require_teacher
from haystack_distill.objectives.objective import CORPUS, QUESTIONS, LossTerm, Objective
from haystack_distill.utils.checks import check_argument, is_integer
from haystack_distill.utils.layer_mapping import uniform_layers

_ATTENTION_LOSSES = {
    "mse_scores": attention_score_loss,
    "kl_div": attention_kl_div_loss,
    "mse_mean": mean_attention_loss,
}
_MAPPINGS = ("uniform", "last", "skip")
_HIDDEN_LOSSES = {"mse": hidden_state_loss, "cosine": cosine_loss}


def resolve_layer_mapping(mapping: str | Sequence[int | None], n_student: int, n_teacher: int) -> list[int | None]:
    """The teacher layer that each student layer is compared with.

    "uniform": student layer m of M maps to teacher layer m * N / M of N, halves rounded up (TinyBERT, Jiao et al. 2020,
    arXiv 1909.10351). M need not divide N. A student may be deeper than its teacher: neighbours then share a layer.
    "last": the student's layers map to the last layers of the teacher.
    "skip": as "uniform", but the student's last layer is left to prediction-layer distillation (PKD-skip, Sun et al.
    2019, arXiv 1908.09355).

    Args:
        mapping: "uniform", "last", "skip", or for each student layer a teacher layer counted from 1, or None for none.
        n_student: Number of layers of the student.
        n_teacher: Number of layers of the teacher.

    Returns:
        For each student layer, first to last, the number of a teacher layer (1 = first) or None.

    Raises:
        DistilError: The name is unknown, or the mapping does not suit the two depths or leaves out every layer.
    """
    check_layer_mapping(mapping)
    if isinstance(mapping, str):
        resolved = _named_mapping(mapping, n_student, n_teacher)
    else:
        resolved = list(mapping)
        if len(resolved) != n_student:
            raise DistilError(
                f"layer_mapping names {len(resolved)} teacher layers, but the student has {n_student} layers; "
                "give one for each, or None for a layer without a teacher layer"
            )
        for layer in resolved:
            if layer is not None and layer > n_teacher:
                raise DistilError(
                    f"layer_mapping contains {layer!r}, but the teacher has layers 1 to {n_teacher}; use one of them "
                    "or None"
                )
    if all(layer is None for layer in resolved):
        raise DistilError(
            f"layer_mapping={mapping!r} maps none of the student's {n_student} layer(s) to a teacher layer; map at "
            "least one"
        )
    return resolved


def check_layer_mapping(mapping: str | Sequence[int | None]) -> None:
    """Check as much of a layer mapping as can be checked before the models are known; see `resolve_layer_mapping`.

    Raises:
        DistilError: The name is unknown, or an entry is neither a number from 1 on nor None.
    """
    listed = isinstance(mapping, Sequence) and not isinstance(mapping, str)
    if not listed and mapping not in _MAPPINGS:
        raise DistilError(f'layer_mapping must be "uniform", "last", "skip" or a list, not {mapping!r}')
    for layer in mapping if listed else ():
        if layer is not None and not is_integer(layer, 1):
            raise DistilError(
                f"layer_mapping contains {layer!r}; give teacher layers, counted from 1, or None for no layer"
            )


def _named_mapping(name: str, n_student: int, n_teacher: int) -> list[int | None]:
    uniform = uniform_layers(n_student, n_teacher)
    if name == "uniform":
        return [*uniform]
    if name == "skip":
        return [*uniform[:-1], None]
    if n_student > n_teacher:
        raise DistilError(
            f'layer_mapping="last" needs a teacher at least as deep as the student, but they have {n_teacher} and '
            f'{n_student} layers; use "uniform" or a list'
        )
    return list(range(n_teacher - n_student + 1, n_teacher + 1))


@dataclass(frozen=True)
class IntermediateLayers(Method):
    """Intermediate layers: the teacher's embeddings, hidden states and attention scores.

    TinyBERT (Jiao et al. 2020, arXiv 1909.10351), on questions or on plain text:

    "attention" (equation 7): the attention scores of each mapped layer, before the softmax.
    "hidden" (equation 8): the hidden states of each mapped layer.
    "embedding" (equation 9): the input of the first layer.

    Each is a mean squared difference, unless `hidden_loss` or `attention_loss` is another, summed over the mapped
    layers. A loss of weight 0 is neither computed nor returned. If the widths differ, trainable linear projections map
    the student's states to the teacher's width: one for the embedding and, unlike in TinyBERT's code, a separate one
    for each mapped layer. Student and teacher must have tokenizers with the same pieces (`teachers.LiveTeacher`).
    Labels are not used, and the question answering head is not trained.

    Args:
        layer_mapping: The teacher layer of each student layer: "uniform" (evenly spread), "last" (the last ones),
            "skip" (as uniform, without the student's last layer), or for each student layer a teacher layer, counted
            from 1, or None. See `resolve_layer_mapping`.
        embedding_loss_weight: Weight of the embedding loss; 0 leaves it out.
        hidden_loss_weight: Weight of the hidden-state loss; 0 leaves it out.
        attention_loss_weight: Weight of the attention-score loss; 0 leaves it out. The default makes it about as large
            as the hidden-state loss: scores before the softmax differ by squares some thirty times as large.
        hidden_loss: How hidden states are compared: "mse", or "cosine" (their directions alone, as in DistilBERT).
        attention_loss: How attention is compared: "mse_scores" (the scores of each head), "kl_div" (the distributions
            of each head, as in MobileBERT; a weight about 1 suits it), or "mse_mean" (the mean of the scores over the
            heads, whose numbers may then differ).

    Raises:
        DistilError: A weight is wrong, all of them are 0, or a loss is chosen whose weight is 0.

    Example:
        >>> from transformers import BertConfig
        >>> student, teacher = BertConfig(num_hidden_layers=4), BertConfig(num_hidden_layers=12)
        >>> IntermediateLayers().objective(student, teacher).layer_mapping
        [3, 6, 9, 12]
    """

    layer_mapping: Literal["uniform", "last", "skip"] | Sequence[int | None] = "uniform"
    embedding_loss_weight: float = 1.0
    hidden_loss_weight: float = 1.0
    attention_loss_weight: float = 0.03
    hidden_loss: Literal["mse", "cosine"] = "mse"
    attention_loss: Literal["mse_scores", "kl_div", "mse_mean"] = "mse_scores"

    def __post_init__(self) -> None:
        check_layer_mapping(self.layer_mapping)
        check_weights(self, "embedding_loss_weight", "hidden_loss_weight", "attention_loss_weight")
        for name, known in (("hidden_loss", _HIDDEN_LOSSES), ("attention_loss", _ATTENTION_LOSSES)):
            value = getattr(self, name)
            words = ", ".join(f'"{word}"' for word in known)
            check_argument(name, value, isinstance(value, str) and value in known, f"one of {words}")
            if getattr(self, f"{name}_weight") == 0 and value != next(iter(known)):
                raise DistilError(f"{name}={value!r} has no effect with {name}_weight=0; leave it out")

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weights above 0 by term."""
        weights = {
            "embedding": self.embedding_loss_weight,
            "hidden": self.hidden_loss_weight,
            "attention": self.attention_loss_weight,
        }
        return {name: float(weight) for name, weight in weights.items() if weight > 0}

    def objective(self, student: PretrainedConfig, teacher: PretrainedConfig | None) -> IntermediateLayersObjective:
        """Create the objective; see `Method.objective`.

        Raises:
            DistilError: There is no teacher, the mapping does not suit the two depths, or attention scores cannot be
                compared, because the numbers of heads differ or an architecture does not provide them.
        """
        return IntermediateLayersObjective(self, student, require_teacher(self, teacher))


class IntermediateLayersObjective(Objective):
    """The objective of `IntermediateLayers`. Its terms are those of "embedding", "hidden" and "attention" with a
    weight above 0.

    Args:
        options: The options of the method.
        student_config: The student's configuration.
        teacher_config: The teacher's configuration.

    Attributes:
        layer_mapping: For each student layer a teacher layer (1 = first) or None.
        embedding_projection: The projection of the embedding, or None.
        hidden_projections: The projections of the mapped layers by student layer number, as a string; may be empty.

    Raises:
        DistilError: See `IntermediateLayers.objective`.
    """

    data = frozenset({QUESTIONS, CORPUS})

    def __init__(
        self, options: IntermediateLayers, student_config: PretrainedConfig, teacher_config: PretrainedConfig
    ) -> None:
        super().__init__()
        self.weights = options.loss_weights
        self.layer_mapping = resolve_layer_mapping(
            options.layer_mapping, student_config.num_hidden_layers, teacher_config.num_hidden_layers
        )
        self._pairs = [(number, layer) for number, layer in enumerate(self.layer_mapping, start=1) if layer is not None]
        states = "embedding" in self.weights or "hidden" in self.weights
        own, theirs = OutputRequest(hidden_states=states), OutputRequest(hidden_states=states)
        if "attention" in self.weights:
            require_comparable_attention(student_config, teacher_config, by_head=options.attention_loss != "mse_mean")
            own |= OutputRequest(attention_scores=tuple(number for number, _ in self._pairs))
            theirs |= OutputRequest(attention_scores=tuple(sorted({layer for _, layer in self._pairs})))
        self.student_request, self.teacher_request = own, theirs
        self._hidden_loss = _HIDDEN_LOSSES[options.hidden_loss]
        self._attention_loss = _ATTENTION_LOSSES[options.attention_loss]

        widths = (student_config.hidden_size, teacher_config.hidden_size)
        # A projection without its loss would be a parameter without a gradient, which fails in distributed training.
        project = widths[0] != widths[1]
        inputs = (input_width(student_config), input_width(teacher_config))
        project_inputs = inputs[0] != inputs[1] and "embedding" in self.weights
        self.embedding_projection = nn.Linear(*inputs) if project_inputs else None
        self.hidden_projections = nn.ModuleDict(
            {str(number): nn.Linear(*widths) for number, _ in self._pairs if project and "hidden" in self.weights}
        )

    def forward(
        self, student: ModelOutputs, teacher: ModelOutputs | None, batch: Mapping[str, Tensor]
    ) -> dict[str, LossTerm]:
        """The unweighted terms; see `Objective.forward`.

        Raises:
            DistilError: There is no teacher, or hidden states or attention scores are missing.
        """
        mask = batch["attention_mask"]
        losses: dict[str, Tensor] = {}
        if self.student_request.hidden_states:
            student_states, teacher_states = hidden_states_of(student, "student"), hidden_states_of(teacher, "teacher")
        if "embedding" in self.weights:
            projected = projected_states(student_states[0], self.embedding_projection)
            losses["embedding"] = hidden_state_loss(projected, teacher_states[0], mask)
        if "hidden" in self.weights:
            per_layer = []
            for number, layer in self._pairs:
                projection = self.hidden_projections[str(number)] if self.hidden_projections else None
                projected = projected_states(student_states[number], projection)
                per_layer.append(self._hidden_loss(projected, teacher_states[layer], mask))
            losses["hidden"] = sum(per_layer[1:], per_layer[0])
        if "attention" in self.weights:
            student_scores = attention_scores_of(student, "student")
            teacher_scores = attention_scores_of(teacher, "teacher")
            per_layer = [
                self._attention_loss(student_scores[number], teacher_scores[layer], mask)
                for number, layer in self._pairs
            ]
            losses["attention"] = sum(per_layer[1:], per_layer[0])
        masks = self.masks(batch)
        return {name: LossTerm(values, masks[name]) for name, values in losses.items()}


def require_comparable_attention(student: PretrainedConfig, teacher: PretrainedConfig, *, by_head: bool = True) -> None:
    """Check that the attention scores of student and teacher can be compared.

    Args:
        student: The student's configuration.
        teacher: The teacher's configuration.
        by_head: Whether head is compared with head.

    Raises:
        DistilError: An architecture does not provide scores, or the numbers of heads differ.
    """
    require_attention_scores(student)
    require_attention_scores(teacher)
    if by_head and student.num_attention_heads != teacher.num_attention_heads:
        raise DistilError(
            f"the student has {student.num_attention_heads} attention heads and the teacher "
            f"{teacher.num_attention_heads}, so their attention scores cannot be compared; "
            "use the method attention_relations, which needs no equal numbers, set attention_loss_weight=0, or make a "
            f"student with {teacher.num_attention_heads} heads"
        )


def projected_states(states: Tensor, projection: nn.Module | None) -> Tensor:
    """Hidden states (B, L, H) through a projection to another width, or as they are without one."""
    # Without autocast, half-precision states may meet float32 projections.
    return states if projection is None else projection(states.to(next(projection.parameters()).dtype))


def hidden_states_of(outputs: ModelOutputs | None, who: str) -> tuple[Tensor, ...]:
    """The hidden states that an objective requested, each (B, L, H); index 0 is the embedding output.

    Args:
        outputs: The outputs of student or teacher.
        who: "student" or "teacher", for the message.

    Raises:
        DistilError: They are missing.
    """
    if outputs is None or outputs.hidden_states is None:
        raise DistilError(f"the objective needs the {who}'s hidden states; run it with the objective's request")
    return outputs.hidden_states


def attention_scores_of(outputs: ModelOutputs | None, who: str) -> dict[int, Tensor]:
    """The attention scores that an objective requested, each (B, heads, L, L); see `hidden_states_of`.

    Raises:
        DistilError: They are missing.
    """
    if outputs is None or outputs.attention_scores is None:
        raise DistilError(f"the objective needs the {who}'s attention scores; run it with the objective's request")
    return outputs.attention_scores
