"""Calibration: one temperature that makes scores the chance of being right, and the best no-answer threshold.

Temperature scaling is by Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599). They fit the
likelihood of the labels; here it is the likelihood that the answer given is right, which is what a score of a `Reader`
is read as. A temperature divides all logits, so it changes no ranking: the best span, the window with the lowest
no-answer and, since the threshold is divided too, the choice between them stay as they are. The threshold is taken off
the no-answer's logit wherever a `Reader` answers, so that scores agree with what is chosen.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, get_args

import datasets
import numpy as np
import torch

from haystack_distill.data.squad.held_out import check_share, hold_out
from haystack_distill.data.squad.load import load_examples
from haystack_distill.data.squad.metrics import ExampleScore, example_scores, require_measurable
from haystack_distill.data.windows import Windows
from haystack_distill.errors import DistilError
from haystack_distill.evaluation.measurements import ExampleResult, chosen_answer, example_results
from haystack_distill.evaluation.reliability import calibration_error
from haystack_distill.models.answers import Prediction
from haystack_distill.models.calibration import (
    RECORD,
    TEMPERATURE,
    THRESHOLD,
    answer_heads,
    calibration_record,
    fold_temperature,
    folds,
    stored_threshold,
)
from haystack_distill.models.reader import ExampleSource, Reader
from haystack_distill.models.span_decoding import best_spans, window_spans
from haystack_distill.utils.checks import check_argument, is_number, require_seed
from haystack_distill.utils.model_inputs import model_inputs
from haystack_distill.utils.progress import progress_bar

ThresholdFor: TypeAlias = Literal["f1", "exact", "none"]

logger = logging.getLogger(__name__)

_LOWEST, _HIGHEST = 0.05, 20.0  # temperatures that are considered
_GRID = 41  # temperatures of the first search, evenly spaced on a logarithmic scale
_REFINEMENTS = 25  # steps of the golden-section search between two of them, each of which leaves 0.62 of the interval
_ROWS = 2000  # windows whose probabilities are computed at once


@dataclass(frozen=True)
class Judged:
    """A reader on the part of the data that nothing was fitted on.

    Attributes:
        metrics: The result of `data.squad.metrics.squad_metrics`, in per cent.
        calibration_error: Expected calibration error, 0 to 1, see `evaluation.reliability.calibration_error`.
        examples: The answer to each question.
    """

    metrics: dict[str, float]
    calibration_error: float
    examples: tuple[ExampleResult, ...]

    @classmethod
    def of(cls, reader: Reader, examples: datasets.Dataset, predictions: Sequence[Prediction]) -> Judged:
        """What a reader's predictions are worth."""
        results = example_results(examples, predictions, reader.no_answer_threshold)
        return cls(reader.metrics_of(examples, predictions), calibration_error(results), results)


@dataclass(frozen=True)
class Calibration:
    """The result of `calibrate`.

    Attributes:
        reader: The calibrated reader, a copy. Its model's configuration has the record that `models.calibration` reads.
        temperature: The fitted temperature, by which the logits were divided.
        no_answer_threshold: The threshold that is stored in the calibrated reader, on the scale of its own logits.
        threshold_for: What the threshold is best for, "f1" or "exact"; None where none was fitted, so that it is the
            old one (stored and set) divided by the temperature.
        before: The reader as it was, on the held-out part.
        after: The calibrated reader, on the held-out part.
        fitted_questions: The number of questions that temperature and threshold were fitted on.
        changed_answers: The number of held-out questions to which the temperature alone, by the rounding of logits that
            are nearly equal, changed the answer.
    """

    reader: Reader
    temperature: float
    no_answer_threshold: float
    threshold_for: str | None
    before: Judged
    after: Judged
    fitted_questions: int
    changed_answers: int


def calibrate(
    reader: Reader,
    data: ExampleSource,
    *,
    held_out: float = 0.5,
    seed: int = 0,
    threshold_for: Literal["f1", "exact", "none"] = "f1",
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> Calibration:
    """Calibrate a reader: fit a temperature and a no-answer threshold on some articles of dev data, judge on the rest.

    The threshold is fitted first: the one with the best F1 (or exact match) where the fitted part has answerable and
    unanswerable questions. Then the temperature T that minimises the negative log likelihood, over the questions, of
    whether the answer given at that threshold is right (an exact match): -log p of the right ones, -log(1 - p) of the
    others, where p is the score of the answer, P(start) P(end) in its window, of logits divided by T. T is folded into
    the weights of the head, and the threshold, divided by T, stored in the model's configuration.

    Calibrating a calibrated reader composes: the temperatures multiply.

    Args:
        reader: A reader with weights; it is not changed.
        data: Labelled examples, as `data.squad.load.load_examples` accepts them, that the reader was not trained on.
        held_out: The share of the articles to judge on; nothing is fitted on them.
        seed: The seed of the choice of articles.
        threshold_for: What the no-answer threshold is best for: F1 or exact match. "none" keeps the reader's own.
        cache_dir: The cache directory, see `utils.cache.cache_directory`.
        progress: Whether to show progress bars.

    Raises:
        DataError: The data cannot be read, or has unlabelled questions.
        DistilError: The reader has no weights of its own (it was exported) or untrained ones, or a speed above 0, the
            data has one article alone, all or none of the answers are right, a value is out of range, or the model's
            logits do not follow the weights of its head.

    Example:
        >>> result = calibrate(Reader.load("finished"), "dev.json")  # doctest: +SKIP
        >>> result.reader.save("calibrated")  # doctest: +SKIP
    """
    check_argument("threshold_for", threshold_for, threshold_for in get_args(ThresholdFor), '"f1", "exact" or "none"')
    check_share(held_out, "held_out")
    require_seed(seed)
    require_calibratable(reader)
    examples = load_examples(data, cache_dir=cache_dir)
    require_measurable(examples)
    fitted, judged = hold_out(
        examples, held_out, seed=seed, cache_dir=cache_dir, name="held_out", instead="give data on more articles"
    )
    predictions, deciding = _predict_and_keep(reader, reader.cut(fitted, cache_dir=cache_dir), progress)
    threshold = _fit_threshold(fitted, predictions, threshold_for)
    fitted_for = None if threshold is None else threshold_for
    if threshold is None:
        threshold = reader.no_answer_threshold
    check_argument("no_answer_threshold", threshold, is_number(threshold), "finite to be stored")
    temperature = _fit_temperature(fitted, predictions, deciding, threshold)
    calibrated = _calibrated(reader, temperature, threshold, fitted_for)
    windows = reader.cut(judged, cache_dir=cache_dir)
    _require_folded(reader, calibrated, temperature, windows)
    before, after = (_predict(one, windows, progress) for one in (reader, calibrated))
    changed = _changed(judged, before, after, threshold)
    if changed:
        logger.warning(
            "%s of %s answers changed with the temperature: their logits were equal but for rounding",
            changed,
            len(judged),
        )
    return Calibration(
        reader=calibrated,
        temperature=temperature,
        no_answer_threshold=stored_threshold(calibrated.model.config) or 0.0,
        threshold_for=fitted_for,
        before=Judged.of(reader, judged, before),
        after=Judged.of(calibrated, judged, after),
        fitted_questions=len(fitted),
        changed_answers=changed,
    )


def require_calibratable(reader: Reader) -> None:
    """Check that a temperature can be folded into a reader.

    Raises:
        DistilError: It was exported, has a speed above 0, some of its weights are untrained, or it has no head of dense
            layers.
    """
    if reader.exported is not None:
        raise DistilError(
            f"the weights of {reader.exported.path} are fixed; calibrate the reader that it was exported from, with "
            "backend='torch', then export what comes out"
        )
    if reader.untrained:
        raise DistilError(
            f"the reader's answers are random, for {', '.join(reader.untrained)} are untrained; train it before it is "
            "calibrated"
        )
    if reader.speed:
        raise DistilError(
            f"at speed {reader.speed:g} a temperature changes at which layer windows leave, and so the answers; "
            "calibrate reader.replace(speed=0), and choose the speed anew"
        )
    answer_heads(reader.model)


# --- the threshold ----------------------------------------------------------------------------------------------------


def best_threshold(gaps: Sequence[float], answered: Sequence[float], silent: Sequence[float]) -> float:
    """The no-answer threshold with the best mean score; of equal ones the lowest.

    Args:
        gaps: Of each question, the no-answer's logit minus the best span's; infinite where there is no span.
        answered: Of each question, the score of its best span.
        silent: Of each question, the score of no answer.

    Returns:
        A finite number, halfway between the gaps of two questions where it is between them. A question whose gap is
        above it is not answered.
    """
    every = np.asarray(gaps, dtype=float)
    finite = np.flatnonzero(np.isfinite(every))
    if not len(finite):
        return 0.0
    order = finite[np.argsort(every[finite], kind="stable")]
    ordered = every[order]
    gains = np.asarray(answered, dtype=float)[order] - np.asarray(silent, dtype=float)[order]
    totals = np.concatenate([[0.0], np.cumsum(gains)])  # totals[n]: the n questions with the lowest gaps are answered
    possible = np.concatenate([[True], ordered[:-1] < ordered[1:], [True]])  # between equal gaps there is no threshold
    count = int(np.argmax(np.where(possible, totals, -np.inf)))
    if count == 0:
        return float(ordered[0] - 1)
    if count == len(ordered):
        return float(ordered[-1])
    return float((ordered[count - 1] + ordered[count]) / 2)


def _fit_threshold(
    examples: datasets.Dataset, predictions: Sequence[Prediction], threshold_for: ThresholdFor
) -> float | None:
    """The best threshold; None where none is wanted, or the data cannot decide."""
    if threshold_for == "none":
        return None
    impossible = np.asarray(examples["is_impossible"], dtype=bool)
    if impossible.all() or not impossible.any():
        logger.warning(
            "the questions that are fitted on are all %sanswerable, so no no-answer threshold is fitted",
            "un" if impossible.any() else "",
        )
        return None
    ids = examples["id"]
    spans = {key: one.answers[0].text if one.answers else "" for key, one in zip(ids, predictions, strict=True)}
    scores = example_scores(examples, spans)
    gaps = [one.no_answer_gap for one in predictions]
    return best_threshold(gaps, [_score(scores[key], threshold_for) for key in ids], impossible.astype(float).tolist())


def _score(score: ExampleScore, name: str) -> float:
    return score.f1 if name == "f1" else score.exact


# --- the temperature --------------------------------------------------------------------------------------------------


class _Window(NamedTuple):
    """Start and end logits of a window, of the context's tokens and the no-answer position, (n,).

    Attributes:
        starts: Start logits.
        ends: End logits.
        no_answer: The place of the no-answer among them.
    """

    starts: np.ndarray
    ends: np.ndarray
    no_answer: int = 0

    def less(self, threshold: float) -> _Window:
        """The window with a threshold taken off the no-answer's logit."""
        starts, ends = self.starts.copy(), self.ends.copy()
        for logits in (starts, ends):
            logits[self.no_answer] -= threshold / 2
        return _Window(starts, ends, self.no_answer)


class _Deciding:
    """Of each question the two windows that may hold the answer: with the best span, and with the lowest no-answer.

    Four bytes for each start and each end of their contexts are held in memory, about 1 kB a question.
    """

    def __init__(self, windows: Windows, max_answer_length: int) -> None:
        self._windows = windows
        self._search = partial(best_spans, top_k=1, max_answer_length=max_answer_length)
        self._spans: dict[int, tuple[float, _Window]] = {}
        self._no_answers: dict[int, tuple[float, _Window]] = {}

    def add(self, batch: dict[str, torch.Tensor], starts: torch.Tensor, ends: torch.Tensor) -> None:
        """Take a batch of windows, with logits (B, L); see `Reader.predict_windows`."""
        mask, position = batch["context_mask"], self._windows.template.no_answer_position
        found = window_spans(starts, ends, mask, position, self._search)
        places = mask[:, :position].sum(dim=1).tolist()  # of the no-answer among what is kept
        rows = zip(batch["window"].tolist(), found.logits[:, 0].tolist(), found.no_answer.tolist(), strict=True)
        for row, (window, span, no_answer) in enumerate(rows):
            example = int(self._windows.example_of[window])
            kept = _Window(starts[row][mask[row]].numpy(), ends[row][mask[row]].numpy(), places[row])
            if span > self._spans.get(example, (-math.inf,))[0]:
                self._spans[example] = (span, kept)
            if no_answer < self._no_answers.get(example, (math.inf,))[0]:
                self._no_answers[example] = (no_answer, kept)

    def window(self, example: int, no_answer: bool) -> _Window:
        """The window that an answer's score is computed in."""
        return (self._no_answers if no_answer else self._spans)[example][1]


def _predict_and_keep(reader: Reader, windows: Windows, progress: bool) -> tuple[list[Prediction], _Deciding]:
    deciding = _Deciding(windows, reader.max_answer_length)
    with progress_bar("fitting", len(windows), "windows", visible=progress) as bar:
        return list(reader.predict_windows(windows, advance=bar.advance, observe=deciding.add)), deciding


def _predict(reader: Reader, windows: Windows, progress: bool) -> list[Prediction]:
    with progress_bar("judging", len(windows), "windows", visible=progress) as bar:
        return list(reader.predict_windows(windows, advance=bar.advance))


def _fit_temperature(
    examples: datasets.Dataset, predictions: Sequence[Prediction], deciding: _Deciding, threshold: float
) -> float:
    """The temperature with the highest likelihood of which answers are right."""
    right = np.asarray([result.exact == 1 for result in example_results(examples, predictions, threshold)])
    if right.all() or not right.any():
        raise DistilError(
            f"{'all' if right.all() else 'none'} of the {len(right)} answers that are fitted on are right, so that no "
            "temperature is the best; give more questions, or a lower held_out"
        )
    allowed = threshold if any(examples["is_impossible"]) else None
    answers = [chosen_answer(prediction, allowed) for prediction in predictions]
    windows = [deciding.window(number, answer.no_answer).less(threshold) for number, answer in enumerate(answers)]
    logits = np.asarray([answer.logit - (threshold if answer.no_answer else 0.0) for answer in answers])

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(scores_at(math.exp(log_temperature), logits, windows), right)

    places = np.linspace(math.log(_LOWEST), math.log(_HIGHEST), _GRID)
    best = int(np.argmin([loss(place) for place in places]))
    found = _golden_section(loss, places[max(best - 1, 0)], places[min(best + 1, _GRID - 1)])
    if best in (0, _GRID - 1):
        logger.warning(
            "the best temperature is at the end of what is considered, %s to %s: the reader's scores hold hardly any "
            "information on this data",
            _LOWEST,
            _HIGHEST,
        )
    return math.exp(found)


def scores_at(temperature: float, logits: np.ndarray, windows: Sequence[_Window]) -> np.ndarray:
    """The scores of answers (N,) if the logits of their windows were divided by a temperature.

    Args:
        temperature: Above 0.
        logits: Start plus end logit of each answer, (N,).
        windows: The window of each.
    """
    found = []
    for first in range(0, len(windows), _ROWS):
        some = windows[first : first + _ROWS]
        masses = _log_masses(temperature, [one.starts for one in some])
        masses += _log_masses(temperature, [one.ends for one in some])
        found.append(np.exp(np.minimum(0.0, logits[first : first + _ROWS] / temperature - masses)))
    return np.concatenate(found)


def _log_masses(temperature: float, rows: Sequence[np.ndarray]) -> np.ndarray:
    """Log of the sum of exponentials of each row, divided by the temperature, (N,)."""
    table = np.full((len(rows), max(map(len, rows))), -np.inf)
    for number, row in enumerate(rows):
        table[number, : len(row)] = row
    table /= temperature
    highest = table.max(axis=1)
    total: np.ndarray = highest + np.log(np.exp(table - highest[:, None]).sum(axis=1))
    return total


def negative_log_likelihood(scores: np.ndarray, right: np.ndarray) -> float:
    """Mean of -log p over the right answers and -log(1 - p) over the others, for scores p (N,) from 0 to 1."""
    chances = np.where(right, scores, 1 - scores)
    return float(-np.log(np.maximum(chances, 1e-12)).mean())


def _golden_section(loss: Callable[[float], float], low: float, high: float) -> float:
    """The place of the minimum of a function with one minimum between two places."""
    share = (math.sqrt(5) - 1) / 2
    one, other = high - share * (high - low), low + share * (high - low)
    loss_one, loss_other = loss(one), loss(other)
    for _ in range(_REFINEMENTS):
        if loss_one <= loss_other:
            high, other, loss_other = other, one, loss_one
            one = high - share * (high - low)
            loss_one = loss(one)
        else:
            low, one, loss_one = one, other, loss_other
            other = low + share * (high - low)
            loss_other = loss(other)
    return (low + high) / 2


# --- the calibrated reader --------------------------------------------------------------------------------------------


def _calibrated(reader: Reader, temperature: float, threshold: float, threshold_for: str | None) -> Reader:
    """A copy with the temperature in its head and the record in its configuration.

    Args:
        reader: The reader.
        temperature: The temperature.
        threshold: The threshold on the scale of the reader's logits, from which that of its own record is taken.
        threshold_for: As for `Calibration`.
    """
    copied = reader.copy()
    fold_temperature(copied.model, temperature)
    before = calibration_record(copied.model.config)
    record = before | {TEMPERATURE: before.get(TEMPERATURE, 1.0) * temperature}
    if threshold_for is not None:
        record["threshold_for"] = threshold_for
    total = ((stored_threshold(copied.model.config) or 0.0) + threshold) / temperature
    record.pop(THRESHOLD, None)
    if threshold_for is not None or total:
        record[THRESHOLD] = total
    setattr(copied.model.config, RECORD, record)
    return copied.replace(no_answer_threshold=0.0)


def _require_folded(reader: Reader, calibrated: Reader, temperature: float, windows: Windows) -> None:
    """Check on a few windows, read to the last layer, that the logits follow the weights of the head."""
    reader, calibrated = (one.replace(speed=0.0) if one.speed else one for one in (reader, calibrated))
    batch = windows.collate(windows.__getitems__([*range(min(4, len(windows)))]))
    pairs = zip(*(one.forward(model_inputs(batch)) for one in (reader, calibrated)), strict=True)
    if not all(folds(before, after, temperature, batch["context_mask"]) for before, after in pairs):
        raise DistilError(
            f"the logits of {type(reader.model).__name__} do not follow the weights of its head, so a temperature "
            "cannot be folded into it; calibrate a reader of another family, such as BERT or RoBERTa"
        )


def _changed(
    examples: datasets.Dataset, before: Sequence[Prediction], after: Sequence[Prediction], threshold: float
) -> int:
    """The number of answers that differ though the threshold is the same but for the temperature."""
    thresholds = (threshold, 0.0) if any(examples["is_impossible"]) else (None, None)
    pairs = zip(before, after, strict=True)
    return sum(len({chosen_answer(*one).text for one in zip(pair, thresholds, strict=True)}) == 2 for pair in pairs)
