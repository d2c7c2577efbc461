"""Task-aware layer-wise distillation: filters that are trained on the task choose what is compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PretrainedConfig

from haystack_distill.errors import DistilError
from haystack_distill.models.outputs import ModelOutputs, OutputRequest
from haystack_distill.objectives.intermediate_layers import check_layer_mapping, hidden_states_of, resolve_layer_mapping
from haystack_distill.objectives.labels import label_loss
from haystack_distill.objectives.losses import hidden_state_loss
from haystack_distill.objectives.method import Method, require_teacher
from haystack_distill.objectives.objective import LossTerm, Objective
from haystack_distill.utils.files import expand_user

FILTERS = "task_filters"  # the name of the file, without its suffix, that a run of `TaskFilters` leaves


@dataclass(frozen=True)
class TaskFilters(Method):
    """Task filters: the first stage of task-aware layer-wise distillation, in which nothing but filters is trained.

    TED, stage I (Liang et al. 2023, arXiv 2210.01351). Each compared layer of the teacher and of the student gets a
    filter, a linear map of its hidden states to the teacher's width, and a span head. They are trained on the labels;
    both models stay as they are:

    total = labels_teacher + labels_student

    Each term is the sum over the compared layers of the label loss of a layer's filtered states. The run leaves the
    filters, without their heads, in its output directory as `task_filters.safetensors`, for `TaskAwareLayers`.

    Args:
        layer_mapping: The teacher layer of each student layer; see `IntermediateLayers`. The second stage must have the
            same.

    Example:
        >>> trainer = ReaderTrainer(student, "filters")  # doctest: +SKIP
        >>> trainer.distil(teacher, "train.json", TaskFilters())  # doctest: +SKIP
        >>> method = TaskAwareLayers(filters="filters") + PredictionLayer(temperature=2.0)  # doctest: +SKIP
        >>> ReaderTrainer(student, "student").distil(teacher, "train.json", method)  # doctest: +SKIP
    """

    layer_mapping: Literal["uniform", "last", "skip"] | Sequence[int | None] = "uniform"

    def __post_init__(self) -> None:
        check_layer_mapping(self.layer_mapping)

    def objective(self, student: PretrainedConfig, teacher: PretrainedConfig | None) -> TaskFiltersObjective:
        """Create the objective; see `Method.objective`."""
        return TaskFiltersObjective(self, student, require_teacher(self, teacher))


@dataclass(frozen=True)
class TaskAwareLayers(Method):
    """Task-aware layers: the teacher's hidden states behind filters that were trained on the task.

    TED, stage II (Liang et al. 2023, arXiv 2210.01351). "filtered" is the mean squared difference of the filtered
    hidden states of each mapped layer, summed over these layers. The filters come from a run of `TaskFilters`; the
    teacher's are frozen, the student's are trained with it. Add a method for the predictions:
    `TaskAwareLayers(filters="filters") + PredictionLayer()`. Student and teacher must have tokenizers with
    the same pieces (`teachers.LiveTeacher`). Labels are not used, and the question answering head is not trained.

    Args:
        filters: The output directory of a run of the method task_filters; in a recipe the name of its stage.
        layer_mapping: The teacher layer of each student layer, the same as in the run that trained the filters.

    Raises:
        DistilError: No filters are named.
    """

    filters: str = ""
    layer_mapping: Literal["uniform", "last", "skip"] | Sequence[int | None] = "uniform"

    needs_run_of: ClassVar[Mapping[str, str]] = MappingProxyType({"filters": "task_filters"})

    def __post_init__(self) -> None:
        check_layer_mapping(self.layer_mapping)

    def objective(self, student: PretrainedConfig, teacher: PretrainedConfig | None) -> TaskAwareLayersObjective:
        """Create the objective; see `Method.objective`.

        Raises:
            DistilError: There is no teacher, no filters are named, or the mapping does not suit the two depths.
        """
        if not self.filters:
            raise DistilError(
                "task_aware_layers compares filtered states; first run the method task_filters, and set filters to its "
                "output directory (in a recipe: to the name of its stage)"
            )
        return TaskAwareLayersObjective(self, student, require_teacher(self, teacher))

    def files(self) -> dict[str, Path]:
        """The file with the filters; see `Method.files`."""
        return {"filters": expand_user(self.filters) / f"{FILTERS}.safetensors"}


class _Filtered(Objective):
    """An objective with a filter for each compared layer.

    Attributes:
        pairs: Pairs of a student layer and its teacher layer, counted from 1.
        teacher_filters: The filters of the teacher by its layer's number, as a string.
        student_filters: Those of the student, likewise.
    """

    def __init__(
        self, mapping: str | Sequence[int | None], student: PretrainedConfig, teacher: PretrainedConfig
    ) -> None:
        super().__init__()
        resolved = resolve_layer_mapping(mapping, student.num_hidden_layers, teacher.num_hidden_layers)
        self.pairs = [(number, layer) for number, layer in enumerate(resolved, start=1) if layer is not None]
        self.student_request = self.teacher_request = OutputRequest(hidden_states=True)
        own, width = student.hidden_size, teacher.hidden_size
        layers = sorted({layer for _, layer in self.pairs})
        self.teacher_filters = nn.ModuleDict({str(layer): nn.Linear(width, width) for layer in layers})
        self.student_filters = nn.ModuleDict({str(number): nn.Linear(own, width) for number, _ in self.pairs})


class TaskFiltersObjective(_Filtered):
    """The objective of `TaskFilters`. Its terms are "labels_teacher" and "labels_student".

    Args:
        options: The options of the method.
        student: The student's configuration.
        teacher: The teacher's configuration.

    Attributes:
        teacher_heads: The span heads of the teacher's filters, by layer number.
        student_heads: Those of the student's.
    """

    trains_student = False
    keeps_answers = True

    def __init__(self, options: TaskFilters, student: PretrainedConfig, teacher: PretrainedConfig) -> None:
        super().__init__(options.layer_mapping, student, teacher)
        self.weights = {"labels_teacher": 1.0, "labels_student": 1.0}
        width = teacher.hidden_size
        self.teacher_heads = nn.ModuleDict({name: nn.Linear(width, 2) for name in self.teacher_filters})
        self.student_heads = nn.ModuleDict({name: nn.Linear(width, 2) for name in self.student_filters})

    def masks(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Labelled windows have both terms; see `Objective.masks`."""
        return dict.fromkeys(self.weights, batch["labelled"].bool())

    def forward(
        self, student: ModelOutputs, teacher: ModelOutputs | None, batch: Mapping[str, Tensor]
    ) -> dict[str, LossTerm]:
        """The unweighted terms; see `Objective.forward`. No gradient reaches student or teacher."""
        masks = self.masks(batch)
        sides = {
            "labels_teacher": (hidden_states_of(teacher, "teacher"), self.teacher_filters, self.teacher_heads),
            "labels_student": (hidden_states_of(student, "student"), self.student_filters, self.student_heads),
        }
        terms = {}
        for name, (states, filters, heads) in sides.items():
            per_layer = [
                label_loss(_spans(states[int(layer)].detach(), filters[layer], heads[layer]), batch)
                for layer in filters
            ]
            terms[name] = LossTerm(torch.stack(per_layer).sum(dim=0), masks[name])
        return terms

    def results(self) -> dict[str, dict[str, Tensor]]:
        """The filters without their heads; see `Objective.results`."""
        kept = {name: value for name, value in self.state_dict().items() if "_filters." in name}
        return {FILTERS: kept}


class TaskAwareLayersObjective(_Filtered):
    """The objective of `TaskAwareLayers`. Its one term is "filtered".

    Args:
        options: The options of the method.
        student: The student's configuration.
        teacher: The teacher's configuration.
    """

    def __init__(self, options: TaskAwareLayers, student: PretrainedConfig, teacher: PretrainedConfig) -> None:
        super().__init__(options.layer_mapping, student, teacher)
        self.weights = {"filtered": 1.0}
        self.path = options.files()["filters"]
        self.teacher_filters.requires_grad_(False)

    def prepare(self) -> None:
        """Load the filters; see `Objective.prepare`.

        Raises:
            DistilError: They cannot be read, or are of other models or of another layer mapping.
        """
        try:
            self.load_state_dict(load_file(self.path))
        except (OSError, SafetensorError) as error:
            raise DistilError(f"the filters in {self.path} cannot be read ({error}); train them again") from error
        except RuntimeError as error:
            raise DistilError(
                f"the filters in {self.path} do not fit this student, teacher and layer_mapping; train them with the "
                "same models and layer_mapping"
            ) from error

    def forward(
        self, student: ModelOutputs, teacher: ModelOutputs | None, batch: Mapping[str, Tensor]
    ) -> dict[str, LossTerm]:
        """The unweighted term; see `Objective.forward`."""
        student_states, teacher_states = hidden_states_of(student, "student"), hidden_states_of(teacher, "teacher")
        targets = {layer: _apply(one, teacher_states[int(layer)]) for layer, one in self.teacher_filters.items()}
        per_layer = [
            hidden_state_loss(
                _apply(self.student_filters[str(number)], student_states[number]),
                targets[str(layer)],
                batch["attention_mask"],
            )
            for number, layer in self.pairs
        ]
        return {"filtered": LossTerm(torch.stack(per_layer).sum(dim=0), self.masks(batch)["filtered"])}


def _apply(module: nn.Module, states: Tensor) -> Tensor:
    # Without autocast, half-precision states may meet float32 filters.
    return module(states.to(next(module.parameters()).dtype))  # type: ignore[no-any-return]


def _spans(states: Tensor, filters: nn.Module, head: nn.Module) -> ModelOutputs:
    """Start and end logits of a layer's filtered states."""
    start, end = head(_apply(filters, states)).unbind(dim=-1)
    return ModelOutputs(start_logits=start, end_logits=end)
