"""SQuAD exact match and F1, as the official evaluation scripts of versions 1.1 and 2.0 compute them.

Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text" (section 6.1), and Rajpurkar et al.
2018, "Know What You Don't Know" (the no-answer threshold). Percentages range from 0 to 100.
"""

import json
import logging
import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, SupportsFloat, TypeAlias

import datasets

from haystack_distill.data.squad.arrow import plain_rows
from haystack_distill.errors import DataError, DistilError
from haystack_distill.utils.atomic import write_atomically
from haystack_distill.utils.files import expand_user

__all__ = [
    "ExampleScore",
    "example_scores",
    "normalize_answer",
    "read_predictions",
    "require_measurable",
    "squad_metrics",
    "write_predictions",
]

logger = logging.getLogger(__name__)

Version: TypeAlias = Literal["auto", "1.1", "2.0"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class ExampleScore(NamedTuple):
    """The scores of one question, from 0 to 1: the best over its reference answers."""

    exact: float
    f1: float


class _Gold(NamedTuple):
    id: str
    answers: list[str]


def normalize_answer(text: str) -> str:
    """Lower-case a text and remove ASCII punctuation, English articles and extra white space, as in SQuAD."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def squad_metrics(
    examples: datasets.Dataset | Iterable[Mapping[str, Any]],
    predictions: Mapping[str, str],
    no_answer_scores: Mapping[str, float] | None = None,
    *,
    no_answer_threshold: float | None = None,
    version: Version = "auto",
) -> dict[str, float]:
    """Score predictions as the official SQuAD scripts do.

    The versions differ: 1.1 counts a question without a prediction as wrong, and gives F1 0 if prediction and reference
    are both empty after normalisation; 2.0 ignores questions without predictions, and gives F1 1 in that case. A
    warning reports the number of missing predictions.

    Args:
        examples: Rows as `read_squad` returns them, of which `id`, `answers` and `labelled` are used.
        predictions: Question id -> predicted text, "" for no answer.
        no_answer_scores: Question id -> score of no answer (a probability, or any other number that increases with
            it). Used by version 2.0 only.
        no_answer_threshold: A prediction is replaced by "" if its no-answer score exceeds this. None leaves the
            predictions unchanged, like 1.0 in the official script with probabilities.
        version: Which script to follow. "auto" is 2.0 if a question is unanswerable or a threshold is given, else
            1.1.

    Returns:
        `exact`, `f1` (percentages) and `total`. With version 2.0 also `HasAns_exact`, `HasAns_f1`, `HasAns_total` and
        `NoAns_...` if there are such questions, and with no-answer scores `best_exact`, `best_exact_thresh`,
        `best_f1`, `best_f1_thresh`: the best results over all thresholds, and their thresholds.

    Raises:
        DataError: An example is unlabelled, lacks answers in version 1.1 or has the id of another one; no question has
            a prediction; a prediction is not a string; a no-answer score is missing or not a number.
        DistilError: The version is unknown, or a threshold is given without scores or with version 1.1.
    """
    if no_answer_threshold is not None and no_answer_scores is None:
        raise DistilError("no_answer_threshold needs no_answer_scores: pass them too, or leave the threshold out")
    if no_answer_threshold is not None and version == "1.1":
        raise DistilError('SQuAD 1.1 has no no-answer threshold: leave it out, or use version="2.0"')
    golds = _golds(examples)
    if version == "auto" and no_answer_threshold is not None:
        version = "2.0"
    version = _version_of(golds, version)
    scores = _scores(golds, predictions, version)
    if version == "1.1":
        return _averages(scores, scores)
    if not scores:
        raise DataError("none of the questions has a prediction: give predictions for the ids of these examples")

    answerable = {gold.id: bool(gold.answers) for gold in golds}
    kept = scores
    if no_answer_scores is not None:
        _check_no_answer_scores(scores, no_answer_scores)
        if no_answer_threshold is not None:
            kept = {
                id_: ExampleScore(*[float(not answerable[id_])] * 2)
                if no_answer_scores[id_] > no_answer_threshold
                else score
                for id_, score in scores.items()
            }
    result = _averages(kept, kept)
    for prefix, wanted in (("HasAns", True), ("NoAns", False)):
        ids = [id_ for id_ in kept if answerable[id_] == wanted]
        if ids:
            result.update({f"{prefix}_{name}": value for name, value in _averages(kept, ids).items()})
    if no_answer_scores is not None:
        for name in ExampleScore._fields:
            values = {id_: getattr(score, name) for id_, score in scores.items()}
            best, threshold = _best_threshold(values, predictions, no_answer_scores, answerable)
            result[f"best_{name}"], result[f"best_{name}_thresh"] = best, threshold
    return result


def example_scores(
    examples: datasets.Dataset | Iterable[Mapping[str, Any]],
    predictions: Mapping[str, str],
    *,
    version: Version = "auto",
) -> dict[str, ExampleScore]:
    """Score every question separately: question id -> exact match and F1, from 0 to 1, in the order of the examples.

    Args:
        examples: As for `squad_metrics`.
        predictions: As for `squad_metrics`. A question without one scores 0 in version 1.1 and is left out in 2.0.
        version: As for `squad_metrics`.

    Raises:
        DataError: As for `squad_metrics`.
        DistilError: The version is unknown.
    """
    golds = _golds(examples)
    return _scores(golds, predictions, _version_of(golds, version))


def require_measurable(examples: datasets.Dataset | Iterable[Mapping[str, Any]]) -> None:
    """Check that examples can be evaluated on, before a reader runs.

    Raises:
        DataError: An example is unlabelled or has the id of another one, or there are none.
    """
    _golds(examples)


def read_predictions(path: str | Path) -> dict[str, str]:
    """Read the official predictions file: a JSON object that maps question ids to texts.

    Raises:
        DataError: The file cannot be read, or contains something else.
    """
    path = expand_user(path)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        if twice:
            raise DataError(f'{path}: the id "{twice[0]}" appears more than once: keep one prediction for it')
        return dict(pairs)

    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=once)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}): check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (at byte {error.start}): save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: the JSON is broken or truncated ({error}): write the file again") from error
    if not isinstance(content, dict):
        raise DataError(f'{path}: predictions must be one JSON object, {{"question id": "text", ...}}')
    for id_, text in content.items():
        if not isinstance(text, str):
            raise DataError(f'{path}: the prediction for "{id_}" must be a string ("" for no answer), not {text!r:.60}')
    return content


def write_predictions(predictions: Mapping[str, str], path: str | Path) -> None:
    """Write predictions as the official file, {question id: text}; an existing file is replaced atomically.

    A symbolic link is followed, a device or a pipe is written directly.

    Raises:
        DataError: An id or a prediction is not a string.
        WriteError: The file cannot be written.
    """
    path = expand_user(path)
    for id_, text in predictions.items():
        if not isinstance(id_, str) or not isinstance(text, str):
            raise DataError(f'predictions must map ids to texts ("" for no answer), but {id_!r} has {text!r:.60}')
    text = json.dumps(dict(predictions), ensure_ascii=False, indent=1) + "\n"
    write_atomically(path, lambda temporary: temporary.write_bytes(text.encode("utf-8")))


def _golds(examples: datasets.Dataset | Iterable[Mapping[str, Any]]) -> list[_Gold]:
    """The ids and reference answers, validated; unanswerable questions have none."""
    golds: list[_Gold] = []
    seen = set()
    for row in _rows(examples):
        try:
            gold = _Gold(row["id"], list(row["answers"]["text"]))
        except (KeyError, TypeError) as error:
            raise DataError(
                f"example {len(golds)} has no id or answers in the SQuAD format: load examples with load_examples"
            ) from error
        if not row.get("labelled", True):
            raise DataError(
                f'question "{gold.id}" is unlabelled (from a transfer set, or from a file without answers such as '
                "Haystack 1's augment_squad writes), so there is no reference to evaluate against: "
                "give labelled data, or leave such rows out (dataset.filter(lambda row: row['labelled']))"
            )
        if gold.id in seen:
            raise DataError(f'two examples have the id "{gold.id}": give every question its own id')
        seen.add(gold.id)
        golds.append(gold)
    if not golds:
        raise DataError("there are no examples to evaluate on: give at least one")
    return golds


def _rows(examples: datasets.Dataset | Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    if not isinstance(examples, datasets.Dataset):
        return examples
    names = [name for name in ("id", "answers", "labelled") if name in examples.column_names]  # contexts are large
    return plain_rows(examples, names)


def _version_of(golds: list[_Gold], version: Version) -> Version:
    if version not in ("auto", "1.1", "2.0"):
        raise DistilError(f'unknown SQuAD version {version!r}: choose "auto", "1.1" or "2.0"')
    unanswerable = next((gold.id for gold in golds if not gold.answers), None)
    if version == "1.1" and unanswerable is not None:
        raise DataError(f'question "{unanswerable}" has no answers, which SQuAD 1.1 cannot score: use version="2.0"')
    if version == "auto":
        return "1.1" if unanswerable is None else "2.0"
    return version


def _scores(golds: list[_Gold], predictions: Mapping[str, str], version: Version) -> dict[str, ExampleScore]:
    scores = {}
    missing = []
    for gold in golds:
        if gold.id not in predictions:
            missing.append(gold.id)
            if version == "1.1":
                scores[gold.id] = ExampleScore(0.0, 0.0)
            continue
        prediction = predictions[gold.id]
        if not isinstance(prediction, str):
            raise DataError(
                f'the prediction for "{gold.id}" must be a string ("" for no answer), not {prediction!r:.60}'
            )
        answers = [normalize_answer(answer) for answer in gold.answers]
        if version == "2.0":
            # The official script drops references that are empty after normalisation; if all are, it means no answer.
            answers = [answer for answer in answers if answer] or [""]
        predicted = normalize_answer(prediction)
        scores[gold.id] = ExampleScore(
            max(float(predicted == answer) for answer in answers),
            max(_f1(predicted, answer, version) for answer in answers),
        )
    if missing:
        logger.warning(
            "%d of %d questions have no prediction (%s%s): %s, as in the official script of SQuAD %s",
            len(missing),
            len(golds),
            ", ".join(missing[:3]),
            ", ..." if len(missing) > 3 else "",
            "they score 0" if version == "1.1" else "they are left out",
            version,
        )
    return scores


def _f1(prediction: str, answer: str, version: Version) -> float:
    """F1 over the bags of words of two normalised texts."""
    predicted, wanted = prediction.split(), answer.split()
    if version == "2.0" and not (predicted and wanted):
        return float(predicted == wanted)
    common = sum((Counter(predicted) & Counter(wanted)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def _averages(scores: Mapping[str, ExampleScore], ids: Iterable[str]) -> dict[str, float]:
    chosen = [scores[id_] for id_ in ids]
    return {
        "exact": 100.0 * sum(score.exact for score in chosen) / len(chosen),
        "f1": 100.0 * sum(score.f1 for score in chosen) / len(chosen),
        "total": len(chosen),
    }


def _check_no_answer_scores(ids: Iterable[str], no_answer_scores: Mapping[str, float]) -> None:
    for id_ in ids:
        if id_ not in no_answer_scores:
            raise DataError(f'question "{id_}" has a prediction but no no-answer score: give one for every prediction')
        score = no_answer_scores[id_]
        if not isinstance(score, SupportsFloat) or math.isnan(score):
            raise DataError(f'the no-answer score of "{id_}" must be a number, not {score!r:.60}')


def _best_threshold(
    scores: Mapping[str, float],
    predictions: Mapping[str, str],
    no_answer_scores: Mapping[str, float],
    answerable: Mapping[str, bool],
) -> tuple[float, float]:
    """The best average (in per cent) over all no-answer thresholds, and that threshold.

    Starts from answering nothing, then answers the questions one by one in the order of their no-answer scores, and
    keeps the best point. This is the algorithm of the official script, which also counts unanswerable questions without
    a prediction. It starts at a threshold of 0, because its scores are probabilities; where some are negative, as
    differences of logits are, it starts below the lowest.
    """
    current = best = float(sum(not has_answer for has_answer in answerable.values()))
    lowest = min((float(no_answer_scores[id_]) for id_ in scores), default=0.0)
    threshold = math.nextafter(lowest, -math.inf) if lowest < 0 else 0.0
    for id_ in sorted(no_answer_scores, key=lambda key: no_answer_scores[key]):
        if id_ not in scores:
            continue
        if answerable[id_]:
            current += scores[id_]
        elif predictions[id_]:
            current -= 1
        if current > best:
            best, threshold = current, no_answer_scores[id_]
    return 100.0 * best / len(scores), threshold
