"""The adaptation `gradual_unfreezing`: the head is trained first, then more and more below it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from haystack_distill.errors import DistilError
from haystack_distill.students.layers import layer_index, layer_list_name
from haystack_distill.training.adaptation import Adaptation, has_begun, head_of
from haystack_distill.training.evaluations import scores_of
from haystack_distill.utils.checks import check_argument, is_integer, is_number

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, TrainerState

    from haystack_distill.training.settings import TrainingSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GradualUnfreezing(Adaptation):
    """The head is trained first, then with it the layers from the last to the first, then the embeddings too.

    Howard and Ruder 2018 (arXiv 1801.06146, section 3.3), for distillation Mukherjee and Awadallah 2020 (arXiv
    2004.05686). Each phase adds weights to those that are trained; the last phase trains all. A weight has neither
    gradient nor optimiser state before its phase begins. With the setting `keep_best` the weights are evaluated at the
    end of each phase too, and the next one begins with the best so far; the optimiser's state is kept.

    Args:
        layers_per_phase: Number of layers that a phase adds.
        phase_shares: Share of the steps for each phase, in their order (head, layers from the last one, embeddings);
            they add up to 1. None gives each phase the same share.
        phase_patience: A phase ends early after so many evaluations without a better one in it (by F1 or loss, see the
            setting `best_by`), and the next one begins; the last phase takes the steps that are left. None: it does
            not. Needs dev data.
    """

    layers_per_phase: int = 1
    phase_shares: Sequence[float] | None = None
    phase_patience: int | None = None

    freezes_later = True

    def __post_init__(self) -> None:
        layers, shares, patience = self.layers_per_phase, self.phase_shares, self.phase_patience
        check_argument("layers_per_phase", layers, is_integer(layers, 1), "a whole number of at least 1")
        check_argument(
            "phase_patience", patience, patience is None or is_integer(patience, 1), "at least 1 and whole, or None"
        )
        if shares is not None:
            listed = isinstance(shares, Sequence) and not isinstance(shares, str)
            positive = listed and all(is_number(share) and share > 0 for share in shares)
            right = positive and math.isclose(sum(shares), 1, abs_tol=1e-3)
            check_argument("phase_shares", shares, right, "a list of numbers above 0 that add up to 1, or None")
            object.__setattr__(self, "phase_shares", tuple(shares))

    @property
    def needs_evaluations(self) -> str | None:
        """The option that has an effect only where the student is evaluated during the run."""
        return None if self.phase_patience is None else "phase_patience"

    def unmeasured(self) -> GradualUnfreezing:
        """Without `phase_patience`; see `Adaptation.unmeasured`."""
        return replace(self, phase_patience=None)

    def prepare(self, model: PreTrainedModel) -> None:
        """Check that there are as many shares as phases; see `Adaptation.prepare`.

        Nothing is frozen here: the optimiser takes the weights that are trainable now, and those of later phases must
        be among them. It holds no state for a weight before its first gradient.

        Raises:
            DistilError: There are not, or the layers of the model share their weights.
        """
        self._shares(len(self._phases(model)))

    def callbacks(self, model: PreTrainedModel, settings: TrainingSettings) -> list[TrainerCallback]:
        """The callback that begins the phases; see `Adaptation.callbacks`."""
        phases = self._phases(model)
        return [_Unfreezing(phases, self._shares(len(phases)), self.phase_patience, settings.best_by)]

    def first_trained(self, model: PreTrainedModel) -> list[nn.Parameter]:
        """The weights of the first phase; see `Adaptation.first_trained`."""
        return self._phases(model)[0]

    def phase_starts(
        self, model: PreTrainedModel, settings: TrainingSettings
    ) -> Callable[[TrainerState], Sequence[float]]:
        """What gives the steps at which the phases begin; see `Adaptation.phase_starts`."""
        shares = self._shares(len(self._phases(model)))

        def starts(state: TrainerState) -> Sequence[float]:
            scores = list(scores_of(state.log_history, settings.best_by).items())
            return phase_starts(state.max_steps, shares, scores, self.phase_patience)

        return starts

    def _phases(self, model: PreTrainedModel) -> list[list[nn.Parameter]]:
        """The weights that each phase adds."""
        if layer_list_name(model) is None:
            raise DistilError(
                f"the layers of a {model.config.model_type} model share their weights, so they cannot be trained one "
                "after the other; choose another adaptation"
            )
        total = int(model.config.num_hidden_layers)
        groups = math.ceil(total / self.layers_per_phase)
        phases: list[list[nn.Parameter]] = [[] for _ in range(groups + 2)]
        head = head_of(model)
        for name, parameter in model.named_parameters():
            number = layer_index(model, name)
            if id(parameter) in head:
                phase = 0
            elif number is None:
                phase = groups + 1
            else:
                phase = 1 + (total - 1 - number) // self.layers_per_phase
            if parameter.requires_grad:
                phases[phase].append(parameter)
        return [phase for phase in phases if phase]  # an encoder alone has no head

    def _shares(self, phases: int) -> Sequence[float]:
        if self.phase_shares is None:
            return [1 / phases] * phases
        if len(self.phase_shares) != phases:
            raise DistilError(
                f"phase_shares has {len(self.phase_shares)} entries, but there are {phases} phases (head, groups of "
                f"{self.layers_per_phase} of the student's layers, embeddings); give one entry per phase"
            )
        return self.phase_shares


class _Unfreezing(TrainerCallback):
    """Freezes the weights of later phases, and unfreezes them when their phase begins.

    The phase is a function of the step and of the log, which checkpoints hold, so a resumed run is in the same phase.
    """

    def __init__(
        self, phases: Sequence[Sequence[nn.Parameter]], shares: Sequence[float], patience: int | None, best_by: str
    ) -> None:
        self.phases = phases
        self.shares = shares
        self.patience = patience
        self.best_by = best_by
        self.phase: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        starts = phase_starts(state.max_steps, self.shares)
        never = [start for start in starts if not has_begun(start, state.max_steps - 1)]
        if never and state.is_world_process_zero:
            logger.warning(
                "gradual_unfreezing: in %d steps the last %d of %d phases do not begin, so their weights are not "
                "trained; train longer, give these phases larger shares, or raise layers_per_phase",
                *(state.max_steps, len(never), len(starts)),
            )
        # Not earlier: DistributedDataParallel takes the weights that are trainable when it is made, once and for all.
        self._begin(state)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._begin(state)

    def _begin(self, state: Any) -> None:
        scores = list(scores_of(state.log_history, self.best_by).items())
        phase = phase_at(state.global_step, state.max_steps, self.shares, scores, self.patience)
        if phase == self.phase:
            return
        self.phase = phase
        for number, parameters in enumerate(self.phases):
            for parameter in parameters:
                parameter.requires_grad_(number <= phase)


def phase_at(
    step: int,
    steps: int,
    shares: Sequence[float],
    scores: Sequence[tuple[int, float]] = (),
    patience: int | None = None,
) -> int:
    """The phase, counted from 0, to which a step of a run belongs.

    Args:
        step: The step, counted from 0.
        steps: Steps of the whole run.
        shares: Share of the steps of each phase.
        scores: Step and score of each evaluation up to this step, in order; the highest score is the best.
        patience: A phase ends after so many evaluations without a better score in it; None: only after its share.
    """
    starts = phase_starts(steps, shares, scores, patience)
    return sum(has_begun(start, step) for start in starts) - 1


def phase_starts(
    steps: int, shares: Sequence[float], scores: Sequence[tuple[int, float]] = (), patience: int | None = None
) -> list[float]:
    """The step at which each phase begins, as far as the scores are known; see `phase_at`."""
    starts = [0.0]
    for share in shares[:-1]:
        end = starts[-1] + share * steps
        if patience is not None:
            end = min(end, _end_of_progress(starts[-1], end, scores, patience))
        starts.append(end)
    return starts


def _end_of_progress(start: float, end: float, scores: Sequence[tuple[int, float]], patience: int) -> float:
    """The step of the evaluation after which the score has stood still in a phase; infinity if it has not."""
    best, waited = -math.inf, 0
    for step, score in scores:
        if start < step <= end:
            waited = 0 if score > best else waited + 1
            best = max(best, score)
            if waited >= patience:
                return step
    return math.inf
