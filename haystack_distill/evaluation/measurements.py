"""What is known of a reader on a data set: size, speed, scores, and what it said to every question."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import datasets
import torch
from accelerate import PartialState

from haystack_distill.data.squad.load import content_hash
from haystack_distill.data.squad.metrics import example_scores
from haystack_distill.errors import DistilError
from haystack_distill.evaluation.processes import predict_together
from haystack_distill.models.reader import Prediction, Reader

Role: TypeAlias = Literal["teacher", "labels", "distilled", "other"]

ROLES = get_args(Role)
_WARM_UP = 3  # calls before the clock starts: the first ones pay for memory and caches


@dataclass(frozen=True)
class ExampleResult:
    """What a reader said to one question.

    Attributes:
        id: The question's.
        text: The answer it gives, "" for no answer.
        score: Probability of that answer, or of no-answer where that is what it says (0 to 1).
        exact: Exact match, 0 or 1.
        f1: F1, 0 to 1.
    """

    id: str
    text: str
    score: float
    exact: float
    f1: float


@dataclass(frozen=True)
class Measurements:
    """A reader measured on a data set; everything in it can be written as JSON (`to_json`, `from_json`).

    Attributes:
        name: What the reader is called in tables and figures.
        role: "teacher", "labels" (a student trained on labels alone), "distilled" or "other".
        parameters: Weights, shared ones counted once.
        megabytes: Size of the weights in 10^6 bytes.
        metrics: What `data.squad.metrics.squad_metrics` returns, in per cent.
        milliseconds: Time for one question asked alone: the median over `timed_questions` calls, after a warm-up.
        timed_questions: How many questions were timed, spread evenly over the data.
        device: Where and how it ran, such as "cpu, fp32, 2 threads".
        data: `data.squad.load.content_hash` of the examples.
        examples: What it said to each question, in the order of the data.
    """

    name: str
    role: Role
    parameters: int
    megabytes: float
    metrics: dict[str, float]
    milliseconds: float
    timed_questions: int
    device: str
    data: str
    examples: tuple[ExampleResult, ...]

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise DistilError(f"unknown role {self.role!r}: choose one of {', '.join(ROLES)}")

    def to_json(self) -> dict[str, Any]:
        """The measurements as plain dictionaries and lists."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Measurements":
        """What `to_json` gave.

        Raises:
            DistilError: The content has other keys.
        """
        try:
            examples = tuple(ExampleResult(**example) for example in content["examples"])
            return cls(**{**content, "examples": examples})
        except (KeyError, TypeError) as error:
            raise DistilError(f"these are no measurements of a reader ({error}): measure it again") from error


def measure_reader(
    reader: Reader,
    examples: datasets.Dataset,
    name: str,
    *,
    role: Role = "other",
    timed_questions: int = 50,
    processes: PartialState | None = None,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> Measurements:
    """Measure a reader: all questions in batches for the scores, some of them alone for the time.

    "No answer" is allowed exactly where the data holds unanswerable questions, as in `Reader.evaluate`.

    Args:
        reader: Who is measured.
        examples: Labelled examples, as `data.squad.load.load_examples` returns them.
        name: What to call the reader.
        role: What the reader is to the others, see `Measurements`.
        timed_questions: How many questions to ask alone, at most; all where the data has fewer.
        processes: The processes of a run, if there are several: each asks its share of the questions.
        cache_dir: See `utils.cache.cache_directory`.
        progress: Whether to show a progress bar.

    Raises:
        DataError: There are no examples, or some are unlabelled.
        DistilError: The role is unknown, or `timed_questions` is below 1.
    """
    if role not in ROLES:
        raise DistilError(f"unknown role {role!r}: choose one of {', '.join(ROLES)}")
    if timed_questions < 1:
        raise DistilError(f"timed_questions must be at least 1, not {timed_questions}")
    data = content_hash(examples)
    ids = examples["id"]
    example_scores(examples, dict.fromkeys(ids, ""))  # bad data is an error now, not after the reader has run for long
    threshold = reader.no_answer_threshold if any(examples["is_impossible"]) else None
    windows = reader.cut(examples, cache_dir=cache_dir)
    predictions = predict_together(reader, windows, processes, progress=progress)
    metrics = reader.metrics_of(examples, predictions)
    chosen = {key: _said(prediction, threshold) for key, prediction in zip(ids, predictions, strict=True)}
    said = {key: text for key, (text, _) in chosen.items()}
    by_example = example_scores(examples, said)
    pairs = evenly(examples, timed_questions)
    return Measurements(
        name=name,
        role=role,
        parameters=reader.n_parameters,
        megabytes=sum(weight.numel() * weight.element_size() for weight in reader.model.parameters()) / 1e6,
        metrics=metrics,
        milliseconds=milliseconds_a_question(reader, pairs),
        timed_questions=len(pairs),
        device=_device(reader),
        data=data,
        examples=tuple(ExampleResult(key, *chosen[key], *by_example[key]) for key in ids),
    )


def _said(prediction: Prediction, threshold: float | None) -> tuple[str, float]:
    """Text and probability of the answer given; without a threshold a span, where there is any."""
    if threshold is None and prediction.answers:
        answer = prediction.answers[0]
    else:
        answer = prediction.ranked(1, threshold or 0.0)[0]
    return answer.text, answer.score


def milliseconds_a_question(reader: Reader, pairs: Sequence[tuple[str, str]]) -> float:
    """The median time for one (question, context) pair asked alone, after a warm-up."""
    seconds = []
    for pair in [*pairs[:_WARM_UP], *pairs]:
        began = time.perf_counter()
        reader.predict_pairs([pair])  # ends with the logits on the CPU, so an accelerator has finished, too
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds[-len(pairs) :])


def evenly(examples: datasets.Dataset, wanted: int) -> list[tuple[str, str]]:
    """Question and context of at most so many examples, spread evenly."""
    chosen = min(wanted, len(examples))
    rows = examples.select([row * len(examples) // chosen for row in range(chosen)])
    return list(zip(rows["question"], rows["context"], strict=True))


def _device(reader: Reader) -> str:
    if reader.device.type != "cpu":
        return f"{reader.device.type}, {reader.precision}"
    if reader.exported is not None:
        return f"cpu, {reader.exported.path.name}"
    threads = torch.get_num_threads()
    return f"cpu, {reader.precision}, {threads} thread{'s' if threads > 1 else ''}"
