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
from torch.nn.functional import pad
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

    def answer_heads(self) -> list[nn.Linear]:
        """The dense layers that compute start and end logits: the last ones of the branches, and the reader's head."""
        return [
            *(branch[-1] if isinstance(branch, nn.Sequential) else branch for branch in self.branches),
            self.qa_outputs,
        ]

    def exit_early(
        self,
        batches: Sequence[Mapping[str, Tensor]],
        speed: float,
        questions: Sequence[Sequence[int]] | None = None,
        odds: dict[int, float] | None = None,
        batch_tokens: int = 0,
    ) -> list[EarlyExits]:
        """Answer each window by the first layer whose uncertainty is below `speed`, else by the last.

        The windows of one question compete. With matchers, a window also leaves, without an answer, where its odds of
        holding the answer are less than `speed` times those of the best window of its question.

        All batches run a layer before any runs the next. Windows that left are not in the batches of the layers above,
        and batches of few windows are put together. Nothing is kept on the model: any number of threads may call this
        at once, each with its own speed.

        Args:
            batches: The tensors that the model is called with: input_ids, attention_mask, maybe token_type_ids, (B, L).
            speed: 0 (all layers run, and the logits are those of `forward` to the bit) to 1 (only the first runs).
            questions: For each batch the question of each window, as a number; None where no windows compete.
            odds: The highest log-odds of each question among windows that were answered before, which this updates.
            batch_tokens: Tokens, padding included, in a batch that others are put together to, at most.
        """
        if not speed:
            return [self._whole(batch) for batch in batches]
        results = _Results(batches)
        runs = [_Run(self, batch, windows) for batch, windows in zip(batches, results.windows, strict=True)]
        contest = None
        if questions is not None and len(self.matchers):
            contest = _Contest([one for of_batch in questions for one in of_batch], {} if odds is None else odds)
        for depth in range(self.config.num_hidden_layers):
            if contest is not None:
                contest.hold(runs, self.matchers[depth], math.log(speed))
            runs = _together(self, [run for run in runs if run.windows], batch_tokens)
            for run in runs:
                run.layer(depth)
                results.ran(run.windows)
                head = self.branches[depth] if depth < len(self.branches) else self.qa_outputs
                start, end = head(run.hidden).unbind(dim=-1)
                leaving = torch.ones(len(start), dtype=torch.bool, device=start.device)
                if depth < len(self.branches) and speed < 1:
                    leaving = uncertainty(start, end, run.mask) < speed
                answered = run.keep(~leaving)
                results.answered(answered, start[leaving], end[leaving])
                if contest is not None:
                    contest.answered(answered)
            runs = [run for run in runs if run.windows]
        return results.of_batches()

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
    """Some windows that go through the layers together.

    Args:
        model: The model.
        inputs: What it is called with, of B windows.
        windows: The numbers of these windows.
        hidden: Their hidden states, (B, L, H), where some layers have run already.

    Attributes:
        windows: The numbers of the windows that are left.
        hidden: Their hidden states.
    """

    def __init__(
        self, model: EarlyExitModel, inputs: Mapping[str, Tensor], windows: list[int], hidden: Tensor | None = None
    ) -> None:
        self._layers = _layers(model)
        self._arguments, self._keywords = _arguments_of_layers(model, inputs)
        self._inputs = inputs
        self._masks = question_and_context(inputs["input_ids"], inputs["attention_mask"])
        self._rows = torch.arange(len(windows), device=inputs["input_ids"].device)  # of those that are left
        self.windows = windows
        self.hidden: Tensor = self._arguments[0] if hidden is None else hidden

    @property
    def mask(self) -> Tensor:
        """True for tokens, False for padding, (windows left, L)."""
        return self._of_rows(self._inputs["attention_mask"]).bool()  # type: ignore[no-any-return]

    def layer(self, depth: int) -> None:
        """Run the next layer, of number `depth` from 0 on."""
        arguments = (self.hidden, *map(self._of_rows, self._arguments[1:]))
        output = self._layers[depth](*arguments, **{name: self._of_rows(one) for name, one in self._keywords.items()})
        self.hidden = output[0] if isinstance(output, tuple) else output

    def match(self, matcher: nn.Module) -> list[float]:
        """The log-odds of the windows that are left."""
        return matcher(self.hidden, *map(self._of_rows, self._masks)).tolist()  # type: ignore[no-any-return]

    def keep(self, staying: Tensor) -> list[int]:
        """Continue with some of the windows that are left, a mask over them; returns the numbers of the others."""
        if staying.all():
            return []
        self._rows, self.hidden = self._rows[staying], self.hidden[staying]
        flags = staying.tolist()
        leaving = [window for window, stays in zip(self.windows, flags, strict=True) if not stays]
        self.windows = [window for window, stays in zip(self.windows, flags, strict=True) if stays]
        return leaving

    def inputs(self) -> dict[str, Tensor]:
        """What the model would be called with for the windows that are left."""
        return {name: self._of_rows(tensor) for name, tensor in self._inputs.items()}

    def _of_rows(self, value: Any) -> Any:
        """The rows of the windows that are left, of what was made for all."""
        count = len(self._inputs["input_ids"])
        if len(self._rows) < count and isinstance(value, Tensor) and value.dim() > 1 and len(value) == count:
            return value[self._rows]
        return value


def _together(model: EarlyExitModel, runs: list[_Run], tokens: int) -> list[_Run]:
    """The runs put together to at most half as many, where no batch then has more than `tokens` tokens."""
    lengths = [int(run.mask.sum(dim=1).amax()) for run in runs] if len(runs) > 1 and tokens else []
    groups: list[list[_Run]] = []
    count, longest = 0, 0
    for run, length in zip(runs, lengths, strict=False):
        count, longest = count + len(run.windows), max(longest, length)
        if not groups or count * longest > tokens:
            groups.append([])
            count, longest = len(run.windows), length
        groups[-1].append(run)
    # The embeddings run again for these, for the sake of masks and biases.
    if not groups or 2 * len(groups) > len(runs):
        return runs
    return [_joined(model, group) if len(group) > 1 else group[0] for group in groups]


def _joined(model: EarlyExitModel, runs: Sequence[_Run]) -> _Run:
    """Runs as one, without the padding that none of them needs."""
    length = max(int(run.mask.sum(dim=1).amax()) for run in runs)
    padding = {"input_ids": model.config.pad_token_id or 0}  # some models count positions by it

    def fitted(tensor: Tensor, value: int = 0) -> Tensor:
        missing = length - tensor.shape[1]
        if missing <= 0:
            return tensor[:, :length]
        return pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, missing), value=value)

    every = [run.inputs() for run in runs]
    inputs = {name: torch.cat([fitted(one[name], padding.get(name, 0)) for one in every]) for name in every[0]}
    hidden = torch.cat([fitted(run.hidden) for run in runs])
    return _Run(model, inputs, [window for run in runs for window in run.windows], hidden)


class _Results:
    """What becomes of each window of a pass.

    Args:
        batches: The inputs of the pass.

    Attributes:
        windows: For each batch the numbers of its windows, counted over all batches.
    """

    def __init__(self, batches: Sequence[Mapping[str, Tensor]]) -> None:
        self._batches = batches
        self.windows: list[list[int]] = []
        for batch in batches:
            first = self.windows[-1][-1] + 1 if self.windows else 0
            self.windows.append(list(range(first, first + len(batch["input_ids"]))))
        self._layers = [0] * sum(map(len, self.windows))
        self._logits: dict[int, tuple[Tensor, Tensor]] = {}

    def ran(self, windows: Sequence[int]) -> None:
        """A layer ran for some windows."""
        for window in windows:
            self._layers[window] += 1

    def answered(self, windows: Sequence[int], starts: Tensor, ends: Tensor) -> None:
        """Some windows have left with these logits."""
        self._logits |= zip(windows, zip(starts.float(), ends.float(), strict=True), strict=True)

    def of_batches(self) -> list[EarlyExits]:
        """The results of each batch. A window that has no logits has lost."""
        made = []
        for batch, windows in zip(self._batches, self.windows, strict=True):
            shape = batch["input_ids"].shape
            logits = torch.full((2, *shape), -torch.inf, device=batch["input_ids"].device)
            logits[:, :, 0] = _CERTAIN
            for row, window in enumerate(windows):
                for place, found in enumerate(self._logits.get(window, ())):
                    length = min(shape[1], len(found))
                    logits[place, row, :length] = found[:length]
            made.append(EarlyExits(logits[0], logits[1], torch.tensor([self._layers[window] for window in windows])))
        return made


class _Contest:
    """The windows of each question against each other: which of them have lost.

    Args:
        question_of: The question of each window.
        best: The highest log-odds of each question among windows that were answered; updated.
    """

    def __init__(self, question_of: Sequence[int], best: dict[int, float]) -> None:
        self._question_of = question_of
        self._best = best
        self._odds: dict[int, float] = {}  # of each window, by the last matcher

    def hold(self, runs: Sequence[_Run], matcher: nn.Module, margin: float) -> None:
        """Let the windows leave whose log-odds are less than the best ones of their question plus a negative margin."""
        present = dict(self._best)
        for run in runs:
            for window, own in zip(run.windows, run.match(matcher), strict=True):
                self._odds[window] = own
                question = self._question_of[window]
                present[question] = max(present.get(question, -math.inf), own)
        for run in runs:
            staying = [self._odds[window] >= present[self._question_of[window]] + margin for window in run.windows]
            run.keep(torch.tensor(staying, dtype=torch.bool, device=run.hidden.device))

    def answered(self, windows: Sequence[int]) -> None:
        """Some windows have answered: others compete with the last log-odds of these."""
        for window in windows:
            question = self._question_of[window]
            self._best[question] = max(self._best.get(question, -math.inf), self._odds[window])


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
