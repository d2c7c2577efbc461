"""The evaluations in the log of a run, and which of them is the best."""

from collections.abc import Mapping, Sequence


def scores_of(history: Sequence[Mapping[str, float]], best_by: str) -> dict[int, float]:
    """The evaluations in a log by their steps, as numbers of which the highest is the best.

    Args:
        history: The log.
        best_by: "f1" or "loss", see `TrainingSettings`.
    """
    name, sign = ("eval_f1", 1) if best_by == "f1" else ("eval_loss", -1)
    return {int(line["step"]): sign * line[name] for line in history if name in line}
