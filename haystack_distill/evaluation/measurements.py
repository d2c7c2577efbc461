"""Measurements of a reader on a dataset: size, speed, scores, and its answer to every question."""

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
from haystack_distill.evaluation.processes import predict_distributed
from haystack_distill.models.answers import Answer, Prediction
from haystack_distill.models.backends.exported import files_of
from haystack_distill.models.reader import Reader
from haystack_distill.utils.checks import check_argument
from haystack_distill.utils.families import shape_of

Role: TypeAlias = Literal["teacher", "labels", "distilled", "other"]

ROLES = get_args(Role)
_WARM_UP = 3  # untimed calls: the first ones allocate memory and fill caches


@dataclass(frozen=True)
class ExampleResult:
    """A reader's answer to one question.

    Attributes:
        id: The id of the question.
        text: The answer, "" for no answer.
        score: The probability of that answer (0 to 1).
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
    """The measurements of a reader on a dataset, which can be stored as JSON (`to_json`, `from_json`).

    Attributes:
        name: The name of the reader in tables and figures.
        role: "teacher", "labels" (a student trained on labels alone), "distilled" or "other".
        parameters: The number of parameters, shared ones counted once.
        megabytes: The size of the weights, or of the files of an exported model, in 10^6 bytes.
        metrics: The result of `data.squad.metrics.squad_metrics`, in per cent.
        milliseconds: Latency of a single question: the median over `timed_questions` calls, after a warm-up.
        timed_questions: The number of questions that were timed, spread evenly over the data.
        device: Device, precision and threads, such as "cpu, fp32, 2 threads".
        data: The `data.squad.load.content_hash` of the examples.
        examples: The answer to each question, in the order of the data.
        shape: What the reader is: architecture, layers, width (`utils.families.shape_of`).
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
    shape: str = ""

    def __post_init__(self) -> None:
        _check_role(self.role)

    def to_json(self) -> dict[str, Any]:
        """The measurements as dictionaries and lists."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Measurements":
        """Restore measurements from the result of `to_json`.

        Raises:
            DistilError: The content has other keys.
        """
        try:
            examples = tuple(ExampleResult(**example) for example in content["examples"])
            return cls(**{**content, "examples": examples})
        except (KeyError, TypeError) as error:
            raise DistilError(f"not the measurements of a reader ({error}): measure it again") from error


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
    """Measure a reader: all questions in batches for the scores, and some of them singly for the latency.

    No answer is allowed if and only if the data has unanswerable questions, as in `Reader.evaluate`.

    Args:
        reader: The reader to measure.
        examples: Labelled examples, as `data.squad.load.load_examples` returns them.
        name: The name of the reader in tables and figures.
        role: The role of the reader in a comparison, see `Measurements`.
        timed_questions: The number of questions to time; all if the data has fewer.
        processes: The processes of a distributed run, each of which predicts its share of the questions.
        cache_dir: The cache directory, see `utils.cache.cache_directory`.
        progress: Whether to show a progress bar.

    Raises:
        DataError: There are no examples, or some are unlabelled.
        DistilError: The role is unknown, or `timed_questions` is below 1.
    """
    _check_role(role)
    check_argument("timed_questions", timed_questions, timed_questions >= 1, "at least 1")
    data = content_hash(examples)
    ids = examples["id"]
    example_scores(examples, dict.fromkeys(ids, ""))  # fails early on invalid data
    windows = reader.cut(examples, cache_dir=cache_dir)
    predictions = predict_distributed(reader, windows, processes, progress=progress)
    metrics = reader.metrics_of(examples, predictions)
    pairs = question_context_pairs(examples, timed_questions)
    return Measurements(
        name=name,
        role=role,
        parameters=reader.n_parameters,
        megabytes=_size_of(reader) / 1e6,
        metrics=metrics,
        milliseconds=milliseconds_per_question(reader, pairs),
        timed_questions=len(pairs),
        device=running_on(reader),
        data=data,
        examples=example_results(examples, predictions, reader.no_answer_threshold),
        shape=shape_of(reader.model.config.to_dict()),
    )


def example_results(
    examples: datasets.Dataset, predictions: Sequence[Prediction], no_answer_threshold: float
) -> tuple[ExampleResult, ...]:
    """The answer to each question, scored; no answer is allowed if and only if the data has unanswerable questions.

    Args:
        examples: Labelled examples.
        predictions: A prediction for each, in order.
        no_answer_threshold: As for `Reader`.
    """
    threshold = no_answer_threshold if any(examples["is_impossible"]) else None
    ids = examples["id"]
    answers = {key: chosen_answer(prediction, threshold) for key, prediction in zip(ids, predictions, strict=True)}
    scores = example_scores(examples, {key: answer.text for key, answer in answers.items()})
    return tuple(ExampleResult(key, answers[key].text, answers[key].score, *scores[key]) for key in ids)


def chosen_answer(prediction: Prediction, no_answer_threshold: float | None) -> Answer:
    """The one answer that is given; without a threshold, a span if there is one."""
    if no_answer_threshold is None and prediction.answers:
        return prediction.answers[0]
    return prediction.ranked(1, no_answer_threshold or 0.0)[0]


def milliseconds_per_question(reader: Reader, pairs: Sequence[tuple[str, str]]) -> float:
    """The median latency of single (question, context) pairs, after a warm-up."""
    seconds = []
    for pair in [*pairs[:_WARM_UP], *pairs]:
        start = time.perf_counter()
        reader.predict_pairs([pair])  # returns logits on the CPU, so an accelerator has finished
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[-len(pairs) :])


def question_context_pairs(examples: datasets.Dataset, n: int) -> list[tuple[str, str]]:
    """Question and context of at most `n` examples, spread evenly over the data."""
    n = min(n, len(examples))
    rows = examples.select([row * len(examples) // n for row in range(n)])
    return list(zip(rows["question"], rows["context"], strict=True))


def _check_role(role: str) -> None:
    check_argument("role", role, role in ROLES, f"one of {', '.join(ROLES)}")


def _size_of(reader: Reader) -> int:
    """The size of what a reader runs, in bytes."""
    if reader.exported is not None:
        return sum(file.stat().st_size for file in files_of(reader.exported))
    return sum(weight.numel() * weight.element_size() for weight in reader.model.parameters())


def running_on(reader: Reader) -> str:
    """Device, precision and threads of a reader, such as "cpu, fp32, 2 threads"."""
    if reader.device.type != "cpu":
        return f"{reader.device.type}, {reader.precision}"
    if reader.exported is not None:
        return f"cpu, {reader.exported.path.name}{'' if reader.precision == 'fp32' else f', {reader.precision}'}"
    threads = torch.get_num_threads()
    return f"cpu, {reader.precision}, {threads} thread{'s' if threads > 1 else ''}"
