"""Paired bootstrap: how sure a difference between two ways of training is, over questions and over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from haystack_distill.errors import DistilError
from haystack_distill.utils.checks import check_argument, is_integer


@dataclass(frozen=True)
class Interval:
    """A difference of means with a bootstrap percentile interval, in the unit of the scores.

    Attributes:
        difference: The difference itself.
        low: The lower end of the interval.
        high: The upper end of the interval.
        confidence: The share of resampled differences that the interval holds.
    """

    difference: float
    low: float
    high: float
    confidence: float = 0.95


def paired_bootstrap(
    scores: Sequence[Sequence[float]],
    baseline: Sequence[Sequence[float]],
    *,
    confidence: float = 0.95,
    samples: int = 5000,
    seed: int = 0,
) -> Interval:
    """The difference of the mean scores of two ways of training, with a percentile interval.

    Each sample draws questions with replacement, the same ones for both sides (Efron & Tibshirani 1993, "An
    Introduction to the Bootstrap"; paired as in Koehn 2004, "Statistical Significance Tests for Machine Translation
    Evaluation"), and seeds with replacement, for each side its own, because seeds of different methods are not pairs.
    With one seed, only questions are drawn: the interval is then about these two students, not about the methods.

    Args:
        scores: For each seed the score of each question, shape (seeds, questions).
        baseline: The scores of the other side on the same questions in the same order; the number of seeds may differ.
        confidence: See `Interval`.
        samples: The number of samples that are drawn.
        seed: The seed of the draws.

    Returns:
        The mean of `scores` minus that of `baseline`.

    Raises:
        DistilError: There are no scores, or the two sides do not have the same number of questions.
    """
    one, other = np.asarray(scores, dtype=float), np.asarray(baseline, dtype=float)
    if one.ndim != 2 or other.ndim != 2 or not one.size or not other.size:
        raise DistilError(
            "a comparison needs the score of each question for each seed; give both sides as lists of lists"
        )
    if one.shape[1] != other.shape[1]:
        raise DistilError(
            f"the two sides have {one.shape[1]} and {other.shape[1]} questions; measure both on the same questions"
        )
    check_argument("samples", samples, is_integer(samples, 1), "a whole number of at least 1")
    check_argument("confidence", confidence, 0 < confidence < 1, "a number between 0 and 1")
    rng = np.random.default_rng(seed)
    questions = one.shape[1]
    differences = np.empty(samples)
    for number in range(samples):
        drawn = _mean_of_drawn_seeds(one, rng) - _mean_of_drawn_seeds(other, rng)
        differences[number] = drawn[rng.integers(questions, size=questions)].mean()
    low, high = np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(one.mean() - other.mean()), float(low), float(high), confidence)


def _mean_of_drawn_seeds(scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The mean score of each question over seeds that are drawn with replacement."""
    seeds = len(scores)
    weights: np.ndarray = np.bincount(rng.integers(seeds, size=seeds), minlength=seeds) / seeds
    mean: np.ndarray = weights @ scores
    return mean
