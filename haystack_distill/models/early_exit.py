"""Readers with early exits: a small span head, a branch, on every layer but the last, where a window may leave.

FastBERT (Liu et al. 2020, arXiv 2004.02178). The backbone is a question answering model of transformers, layers and
span head unchanged, so that it answers by its last layer as the plain model does. When it runs with a `speed`, a window
leaves at the first layer whose branch is certain enough, and the layers above run on a smaller batch. Where several
windows are read for one question, those leave early that are much less likely to hold the answer than another one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForQuestionAnswering, PretrainedConfig, PreTrainedModel

from haystack_distill.errors import DistilError
from haystack_distill.models.matching import Matcher, question_and_context
from haystack_distill.utils.families import EARLY_EXIT

# The module of each family in transformers, and what the names of its classes begin with.
_FAMILIES = {
    "bert": ("bert", "Bert"),
    "roberta": ("roberta", "Roberta"),
    "xlm-roberta": ("xlm_roberta", "XLMRoberta"),
    "camembert": ("camembert", "Camembert"),
    "electra": ("electra", "Electra"),
    "distilbert": ("distilbert", "DistilBert"),
    "mpnet": ("mpnet", "MPNet"),
    "albert": ("albert", "Albert"),
}
_CERTAIN = 1e4  # the logit of the no-answer of a window that lost: above that of any window that did not


class EarlyExits(NamedTuple):
    """What a model with early exits computes for B windows.

    Attributes:
        start_logits: Of the layer at which each window left, (B, L). A window that lost against another one of its
            question has no spans: -inf at all tokens but the first, where its no-answer is certain.
        end_logits: Likewise, (B, L).
        layers: How many layers ran for each window, (B,), on the CPU.
    """

    start_logits: Tensor
    end_logits: Tensor
    layers: Tensor


class EarlyExitModel(PreTrainedModel):
    """Base class of readers with early exits; their other base is a question answering model of transformers.

    `forward` is that of the plain model. The weights have its names too, and `branches` and `matchers`.

    Attributes:
        branches: For each layer but the last, a module that turns its hidden states (B, L, H) into logits (B, L, 2).
        matchers: For the embeddings and for each layer but the last, a `Matcher`; none where `match_size` is 0.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        hidden, size, match = (getattr(config, name, 0) for name in ("hidden_size", "branch_size", "match_size"))
        depth = config.num_hidden_layers
        self.branches = nn.ModuleList(_branch(hidden, size) for _ in range(depth - 1))
        self.matchers = nn.ModuleList(Matcher(hidden, match) for _ in range(depth if match else 0))
        _layers(self)[0].register_forward_pre_hook(_stop, with_kwargs=True)

    def exit_early(
        self,
        batches: Sequence[Mapping[str, Tensor]],
        speed: float,
        questions: Sequence[Sequence[int]] | None = None,
        odds: dict[int, float] | None = None,
    ) -> list[EarlyExits]:
        """Answer each window by the first layer whose uncertainty is below `speed`, else by the last.

        The windows of one question compete. With matchers, a window also leaves, without an answer, where its odds of
        holding the answer are less than `speed` times those of the best window of its question.

        All batches run a layer before any runs the next. Windows that left are not in the batches of the layers above.
        Nothing is kept on the model: any number of threads may call this at once, each with its own speed.

        Args:
            batches: The tensors that the model is called with: input_ids, attention_mask, maybe token_type_ids, (B, L).
            speed: 0 (all layers run, and the logits are those of `forward` to the bit) to 1 (only the first runs).
            questions: For each batch the question of each window, as a number; None where no windows compete.
            odds: The highest log-odds of each question among windows that were answered before, which this updates.
        """
        if not speed:
            return [self._whole(batch) for batch in batches]
        runs = [_Run(self, batch) for batch in batches]
        contest = None
        if questions is not None and len(self.matchers):
            contest = _Contest(self.matchers, questions, {} if odds is None else odds, math.log(speed))
        for depth in range(self.config.num_hidden_layers):
            if contest is not None:
                contest.hold(runs, depth)
            for run in runs:
                run.layer(depth)
            if depth < len(self.branches):
                for number, run in enumerate(runs):
                    certain = run.certain(self.branches[depth], speed)
                    if contest is not None:
                        contest.answered(number, run.rows[certain])
                    run.keep(~certain)
        for number, run in enumerate(runs):
            if contest is not None:
                contest.answered(number, run.rows)
            run.finish(self.qa_outputs)
        return [EarlyExits(run.start_logits, run.end_logits, run.layers.cpu()) for run in runs]

    def _whole(self, batch: Mapping[str, Tensor]) -> EarlyExits:
        output = self(**batch)
        layers = torch.full((len(output.start_logits),), self.config.num_hidden_layers)
        return EarlyExits(output.start_logits, output.end_logits, layers)


def _branch(hidden: int, size: int) -> nn.Module:
    if not size:
        return nn.Linear(hidden, 2)
    return nn.Sequential(nn.Linear(hidden, size), nn.GELU(), nn.Linear(size, 2))


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that run one after the other; ALBERT's are fewer than its layers, and each runs repeatedly."""
    for name, module in model.base_model.named_modules():
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] in ("layer", "albert_layer_groups"):
            stored, depth = list(module), model.config.num_hidden_layers
            return [stored[int(layer / (depth / len(stored)))] for layer in range(depth)]  # ALBERT's own arithmetic
    raise AssertionError(f"{type(model).__name__} has no list of layers")


# --- one pass: the family's own code as far as its first layer, then layer by layer -----------------------------------


class _Stopped(Exception):
    """The first layer was reached; the arguments of this are those that it was called with."""


# Of this thread (or task) alone: whether the pass ends at the first layer.
_STOPS: ContextVar[bool] = ContextVar("stops at the first layer", default=False)


def _stop(_layer: nn.Module, arguments: Any, keywords: Any) -> None:
    if _STOPS.get():
        raise _Stopped(arguments, keywords)


class _Run:
    """One batch of B windows on its way through the layers.

    Attributes:
        rows: Which windows are left.
        hidden: Their hidden states, (windows left, L, H).
        start_logits: Of the windows that have left, (B, L), float32.
        end_logits: Likewise.
        layers: How many layers ran for the windows that have left, (B,).
    """

    def __init__(self, model: EarlyExitModel, batch: Mapping[str, Tensor]) -> None:
        self._layers = _layers(model)
        self._arguments, self._keywords = _arguments_of_layers(model, batch)
        self.hidden: Tensor = self._arguments[0]
        self._mask = batch["attention_mask"].bool()
        count, device = len(self._mask), self._mask.device
        self.question, self.context = question_and_context(batch["input_ids"], self._mask)
        self.rows = torch.arange(count, device=device)
        # As of windows that lost: nothing but the no-answer.
        self.start_logits = torch.full(self._mask.shape, -torch.inf, device=device)
        self.start_logits[:, 0] = _CERTAIN
        self.end_logits = self.start_logits.clone()
        self.layers = torch.zeros(count, dtype=torch.long, device=device)

    def layer(self, depth: int) -> None:
        """Run the next layer, of number `depth` from 0 on, on the windows that are left."""
        if not len(self.rows):
            return
        arguments = (self.hidden, *map(self._of_rows, self._arguments[1:]))
        output = self._layers[depth](*arguments, **{name: self._of_rows(one) for name, one in self._keywords.items()})
        self.hidden = output[0] if isinstance(output, tuple) else output
        self.layers[self.rows] += 1

    def _of_rows(self, value: Any) -> Any:
        """The rows of the windows that are left, of masks and biases that are made for the whole batch."""
        count = len(self._mask)
        if len(self.rows) < count and isinstance(value, Tensor) and value.dim() > 1 and len(value) == count:
            return value[self.rows]
        return value

    def certain(self, branch: nn.Module, speed: float) -> Tensor:
        """Which of the windows left are certain enough after this layer; their logits are stored."""
        if not len(self.rows):
            return torch.zeros(0, dtype=torch.bool, device=self.rows.device)
        start, end = branch(self.hidden).unbind(dim=-1)
        if speed >= 1:
            certain = torch.ones(len(self.rows), dtype=torch.bool, device=self.rows.device)
        else:
            certain = uncertainty(start, end, self._of_rows(self._mask)) < speed
        self._store(self.rows[certain], start[certain], end[certain])
        return certain

    def keep(self, staying: Tensor) -> None:
        """Go on with some of the windows left, a mask over them."""
        if not staying.all():
            self.rows, self.hidden = self.rows[staying], self.hidden[staying]

    def match(self, matcher: nn.Module) -> Tensor:
        """The log-odds of the windows that are left, on the CPU."""
        return matcher(self.hidden, self._of_rows(self.question), self._of_rows(self.context)).cpu()  # type: ignore[no-any-return]

    def finish(self, head: nn.Module) -> None:
        """Answer the windows that are left by the last layer."""
        if len(self.rows):
            self._store(self.rows, *head(self.hidden).unbind(dim=-1))

    def _store(self, rows: Tensor, start: Tensor, end: Tensor) -> None:
        self.start_logits[rows] = start.float()
        self.end_logits[rows] = end.float()


class _Contest:
    """The windows of each question against each other: which of them have lost.

    Args:
        matchers: One for the embeddings and for each layer but the last.
        questions: For each batch the question of each window.
        best: The highest log-odds of each question among windows that were answered; updated.
        margin: A window has lost where its log-odds are less than the best ones plus this negative number.
    """

    def __init__(
        self, matchers: nn.ModuleList, questions: Sequence[Sequence[int]], best: dict[int, float], margin: float
    ) -> None:
        self._matchers = matchers
        self._questions = questions
        self._best = best
        self._margin = margin
        self._odds: list[dict[int, float]] = [{} for _ in questions]  # of each batch, by row

    def hold(self, runs: Sequence[_Run], depth: int) -> None:
        """After `depth` layers: let the windows leave that have lost."""
        present = dict(self._best)
        places: list[list[tuple[int, float]]] = []
        for number, run in enumerate(runs):
            if not len(run.rows):
                places.append([])
                continue
            rows = run.rows.tolist()
            odds = self._odds[number] = dict(zip(rows, run.match(self._matchers[depth]).tolist(), strict=True))
            places.append([(self._questions[number][row], odds[row]) for row in rows])
            for question, own in places[-1]:
                present[question] = max(present.get(question, -math.inf), own)
        for run, windows in zip(runs, places, strict=True):
            staying = [own >= present[question] + self._margin for question, own in windows]
            run.keep(torch.tensor(staying, dtype=torch.bool, device=run.rows.device))

    def answered(self, number: int, rows: Tensor) -> None:
        """Some windows of a batch have answered: others compete with the last log-odds of these."""
        for row in rows.tolist():
            question = self._questions[number][row]
            self._best[question] = max(self._best.get(question, -math.inf), self._odds[number][row])


def _arguments_of_layers(model: EarlyExitModel, batch: Mapping[str, Tensor]) -> tuple[tuple, dict[str, Any]]:
    """What the family's own code calls its layers with: hidden states first, then masks and biases."""
    token = _STOPS.set(True)
    try:
        model(**batch)
    except _Stopped as stopped:
        return stopped.args  # type: ignore[return-value]
    finally:
        _STOPS.reset(token)
    raise AssertionError(f"{type(model).__name__} did not run its first layer")


def uncertainty(start_logits: Tensor, end_logits: Tensor, mask: Tensor) -> Tensor:
    """The mean of the normalised entropies of start and end: 0 for a single position, 1 for a uniform distribution.

    FastBERT (arXiv 2004.02178), equation 8, of two distributions over the tokens of a window.

    Args:
        start_logits: (B, L).
        end_logits: (B, L).
        mask: True for tokens, False for padding, (B, L).

    Returns:
        (B,), from 0 to 1, float32.
    """
    tokens = mask.bool()
    largest = tokens.sum(dim=1).clamp(min=2).float().log()
    entropies = []
    for logits in (start_logits, end_logits):
        logs = logits.float().masked_fill(~tokens, -torch.inf).log_softmax(dim=1)
        entropies.append(-(logs.exp() * logs.masked_fill(~tokens, 0.0)).sum(dim=1))
    return (entropies[0] + entropies[1]) / (2 * largest)


# --- the classes of each family ---------------------------------------------------------------------------------------


def families() -> list[str]:
    """The model types of which there are readers with early exits, such as "bert"."""
    return list(_FAMILIES)


def early_exit_config(family: str) -> type[PretrainedConfig]:
    """The configuration class of a family's readers with early exits: the family's, with two sizes more.

    Args:
        family: A model type of transformers.

    Raises:
        DistilError: There are no readers with early exits of this family.
    """
    return early_exit_class(family).config_class  # type: ignore[return-value]


def early_exit_class(family: str) -> type[EarlyExitModel]:
    """The class of a family's readers with early exits; see `early_exit_config`."""
    if family not in _CLASSES:
        raise DistilError(
            f"a {family!r} model cannot have early exits (only {', '.join(families())} can); take a reader of one of "
            "these families"
        )
    return _CLASSES[family]


def _classes_of(family: str, folder: str, prefix: str) -> type[EarlyExitModel]:
    """A family's configuration and model, known to the auto classes."""
    package = f"transformers.models.{folder}"
    plain_config = getattr(import_module(f"{package}.configuration_{folder}"), f"{prefix}Config")
    plain = getattr(import_module(f"{package}.modeling_{folder}"), f"{prefix}ForQuestionAnswering")
    model_type = EARLY_EXIT + family
    config = _named(f"EarlyExit{prefix}Config", (plain_config,), model_type=model_type, branch_size=0, match_size=0)
    model = _named(f"EarlyExit{prefix}ForQuestionAnswering", (EarlyExitModel, plain), config_class=config)
    AutoConfig.register(model_type, config)
    AutoModelForQuestionAnswering.register(config, model)
    return model  # type: ignore[no-any-return]


def _named(name: str, bases: tuple[type, ...], **content: Any) -> Any:
    """A class in this module, where pickle looks for it."""
    made = type(name, bases, {"__module__": __name__, "__doc__": f"See `{EarlyExitModel.__name__}`.", **content})
    globals()[name] = made
    return made


_CLASSES: dict[str, type[EarlyExitModel]] = {family: _classes_of(family, *names) for family, names in _FAMILIES.items()}
