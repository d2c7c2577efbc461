"""How far scores can be trusted: the share of right answers against the score, and the expected calibration error."""

from collections.abc import Sequence
from dataclasses import dataclass

from haystack_distill.evaluation.measurements import ExampleResult


@dataclass(frozen=True)
class Bin:
    """Answers with similar scores.

    Attributes:
        score: Their mean score, 0 to 1.
        exact: The share of exact matches, 0 to 1.
        count: The number of answers.
    """

    score: float
    exact: float
    count: int


def reliability(results: Sequence[ExampleResult], bins: int = 10) -> list[Bin]:
    """Answers in `bins` bins of equal width over scores from 0 to 1; empty bins are left out."""
    groups: dict[int, list[ExampleResult]] = {}
    for result in results:
        groups.setdefault(min(max(int(result.score * bins), 0), bins - 1), []).append(result)
    return [
        Bin(_mean([one.score for one in group]), _mean([one.exact for one in group]), len(group))
        for _, group in sorted(groups.items())
    ]


def calibration_error(results: Sequence[ExampleResult], bins: int = 10) -> float:
    """Expected calibration error (0 to 1): mean difference of score and share of exact matches, over `reliability`.

    Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599), equation 3.
    """
    return sum(one.count * abs(one.score - one.exact) for one in reliability(results, bins)) / len(results)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
