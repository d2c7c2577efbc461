"""MobileBERT's knowledge transfer: feature maps with their means and variances, and attention distributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from transformers import PretrainedConfig

from haystack_distill.errors import DistilError
from haystack_distill.models.outputs import ModelOutputs, OutputRequest
from haystack_distill.objectives.intermediate_layers import (
    attention_scores_of,
    check_layer_mapping,
    hidden_states_of,
    projected_states,
    require_comparable_attention,
    resolve_layer_mapping,
)
from haystack_distill.objectives.losses import (
    attention_kl_div_loss,
    hidden_state_loss,
    mean_loss,
    standardised_state_loss,
    variance_loss,
)
from haystack_distill.objectives.method import Method, check_weights, refuse_without_effect, require_teacher
from haystack_distill.objectives.objective import CORPUS, QUESTIONS, LossTerm, Objective
from haystack_distill.utils.checks import check_argument, is_integer

_FEATURE_MAP_LOSSES = {"standardised": standardised_state_loss, "mse": hidden_state_loss}
_TERMS = ("feature_map", "mean", "variance", "attention")


@dataclass(frozen=True)
class FeatureMaps(Method):
    """Feature maps: the teacher's layer outputs with their means and variances, and its attention distributions.

    MobileBERT (Sun et al. 2020, arXiv 2004.02984), on questions or on plain text:

    "feature_map" (feature map transfer, equation 1): the mean squared difference of the layers' hidden states, each
    token's less its mean and divided by its standard deviation, as in the authors' code, or as they are.
    "mean", "variance": the squared difference of the means, and the absolute one of the variances, of each token's
    hidden state.
    "attention" (attention transfer, equation 2): KL(teacher || student) of each head's attention distributions.

    Each is summed over the mapped layers. The weights in the authors' code, for their layers, are 100, 5000, 5 and 1. A
    loss of weight 0 is neither computed nor returned. If the widths differ, trainable linear projections map the
    student's states to the teacher's width. Student and teacher must have tokenizers with the same pieces
    (`teachers.LiveTeacher`) and, for the attention, as many heads. Labels are not used, and the head is not trained.

    Progressive transfer is a stage for each layer: `student_layers=[1]`, then `[2]`, and so on, with the layers below
    frozen by the adaptation.

    Args:
        layer_mapping: The teacher layer of each student layer: "uniform" (evenly spread), "last" (the last ones),
            "skip" (as uniform, without the student's last layer), or for each student layer a teacher layer, counted
            from 1, or None. See `resolve_layer_mapping`.
        student_layers: The student layers, counted from 1, that learn in this stage; None for all that are mapped.
        feature_map_loss_weight: Weight of the feature map transfer; 0 leaves it out.
        mean_loss_weight: Weight of the means of the feature maps; 0 leaves it out.
        variance_loss_weight: Weight of the variances of the feature maps; 0 leaves it out.
        attention_loss_weight: Weight of the attention transfer; 0 leaves it out.
        feature_map_loss: How feature maps are compared: "standardised" (what means and variances leave of them), or
            "mse" (as they are, the paper's equation 1, which counts means and variances too).

    Raises:
        DistilError: An option is out of range, all weights are 0, or a loss is chosen whose weight is 0.

    Example:
        >>> from transformers import BertConfig
        >>> FeatureMaps(student_layers=[2]).objective(BertConfig(num_hidden_layers=4), BertConfig()).pairs
        [(2, 6)]
    """

    layer_mapping: Literal["uniform", "last", "skip"] | Sequence[int | None] = "uniform"
    student_layers: Sequence[int] | None = None
    feature_map_loss_weight: float = 1.0
    mean_loss_weight: float = 1.0
    variance_loss_weight: float = 1.0
    attention_loss_weight: float = 1.0
    feature_map_loss: Literal["standardised", "mse"] = "standardised"

    def __post_init__(self) -> None:
        check_layer_mapping(self.layer_mapping)
        layers = self.student_layers
        listed = isinstance(layers, Sequence) and not isinstance(layers, str) and len(layers) > 0
        valid = layers is None or (listed and all(is_integer(layer, 1) for layer in layers))
        check_argument("student_layers", layers, valid, "None or a list of layers, counted from 1")
        check_weights(
            self, "feature_map_loss_weight", "mean_loss_weight", "variance_loss_weight", "attention_loss_weight"
        )
        loss = self.feature_map_loss
        valid = isinstance(loss, str) and loss in _FEATURE_MAP_LOSSES
        check_argument("feature_map_loss", loss, valid, '"standardised" or "mse"')
        if self.feature_map_loss_weight == 0:
            refuse_without_effect(self, "feature_map_loss", "feature_map_loss_weight=0 leaves out the feature maps")

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weights above 0 by term."""
        weights = {name: getattr(self, f"{name}_loss_weight") for name in _TERMS}
        return {name: float(weight) for name, weight in weights.items() if weight > 0}

    def objective(self, student: PretrainedConfig, teacher: PretrainedConfig | None) -> FeatureMapsObjective:
        """Create the objective; see `Method.objective`.

        Raises:
            DistilError: There is no teacher, a layer does not exist or has no teacher layer, or attention cannot be
                compared, because the numbers of heads differ or an architecture does not provide it.
        """
        return FeatureMapsObjective(self, student, require_teacher(self, teacher))


class FeatureMapsObjective(Objective):
    """The objective of `FeatureMaps`. Its terms are those of "feature_map", "mean", "variance" and "attention" with a
    weight above 0.

    Args:
        options: The options of the method.
        student_config: The student's configuration.
        teacher_config: The teacher's configuration.

    Attributes:
        pairs: Student layer and teacher layer, counted from 1, of each pair that is compared.
        projections: The projections by student layer number, as a string; empty where the widths agree.

    Raises:
        DistilError: See `FeatureMaps.objective`.
    """

    data = frozenset({QUESTIONS, CORPUS})

    def __init__(
        self, options: FeatureMaps, student_config: PretrainedConfig, teacher_config: PretrainedConfig
    ) -> None:
        super().__init__()
        self.weights = options.loss_weights
        feature_map_loss = _FEATURE_MAP_LOSSES[options.feature_map_loss]
        losses = {"feature_map": feature_map_loss, "mean": mean_loss, "variance": variance_loss}
        self._state_losses = {name: loss for name, loss in losses.items() if name in self.weights}
        self.pairs = _pairs(options, student_config.num_hidden_layers, teacher_config.num_hidden_layers)
        states = bool(self._state_losses)
        own, theirs = OutputRequest(hidden_states=states), OutputRequest(hidden_states=states)
        if "attention" in self.weights:
            require_comparable_attention(student_config, teacher_config)
            own |= OutputRequest(attention_scores=tuple(number for number, _ in self.pairs))
            theirs |= OutputRequest(attention_scores=tuple(sorted({layer for _, layer in self.pairs})))
        self.student_request, self.teacher_request = own, theirs
        widths = (student_config.hidden_size, teacher_config.hidden_size)
        # A projection without its loss would be a parameter without a gradient, which fails in distributed training.
        project = states and widths[0] != widths[1]
        self.projections = nn.ModuleDict({str(number): nn.Linear(*widths) for number, _ in self.pairs if project})

    def forward(
        self, student: ModelOutputs, teacher: ModelOutputs | None, batch: Mapping[str, Tensor]
    ) -> dict[str, LossTerm]:
        """The unweighted terms; see `Objective.forward`.

        Raises:
            DistilError: There is no teacher, or hidden states or attention scores are missing.
        """
        mask, masks = batch["attention_mask"], self.masks(batch)
        per_layer: dict[str, list[Tensor]] = {name: [] for name in self.weights}
        if self.student_request.hidden_states:
            own, target = hidden_states_of(student, "student"), hidden_states_of(teacher, "teacher")
            for number, layer in self.pairs:
                projected = projected_states(own[number], self.projections[str(number)] if self.projections else None)
                for name, loss in self._state_losses.items():
                    per_layer[name].append(loss(projected, target[layer], mask))
        if "attention" in self.weights:
            scores, target_scores = attention_scores_of(student, "student"), attention_scores_of(teacher, "teacher")
            per_layer["attention"] = [
                attention_kl_div_loss(scores[number], target_scores[layer], mask) for number, layer in self.pairs
            ]
        return {name: LossTerm(sum(losses[1:], losses[0]), masks[name]) for name, losses in per_layer.items()}


def _pairs(options: FeatureMaps, n_student: int, n_teacher: int) -> list[tuple[int, int]]:
    """The student layers that learn, with their teacher layers."""
    mapping = resolve_layer_mapping(options.layer_mapping, n_student, n_teacher)
    mapped = {number: layer for number, layer in enumerate(mapping, start=1) if layer is not None}
    if options.student_layers is None:
        return list(mapped.items())
    for number in options.student_layers:
        if number not in mapped:
            raise DistilError(
                f"student_layers contains {number}, but the student's layers with a teacher layer are "
                f"{', '.join(map(str, mapped))}; take some of these"
            )
    return [(number, mapped[number]) for number in sorted(set(options.student_layers))]
