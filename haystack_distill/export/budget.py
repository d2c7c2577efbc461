"""Students, and speeds of a reader with early exits, that fit a budget: candidates are measured on this machine."""

import itertools
import logging
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets

from haystack_distill import students
from haystack_distill.data.squad.metrics import squad_metrics
from haystack_distill.errors import DistilError
from haystack_distill.evaluation.measurements import milliseconds_per_question
from haystack_distill.evaluation.passages import answer_with_passages, with_other_passages
from haystack_distill.models.backends.choice import installed_runtimes
from haystack_distill.models.backends.exported import FILES, INT8_BACKENDS, check_backend, runtime_of
from haystack_distill.models.bilstm_config import MODEL_TYPE
from haystack_distill.models.early_exit import EarlyExitModel
from haystack_distill.models.reader import Reader
from haystack_distill.students.parts import feed_forward_size
from haystack_distill.students.pruning import half_shape, narrowed
from haystack_distill.utils.devices import resolve_precision
from haystack_distill.utils.files import temporary_directory, writing

logger = logging.getLogger(__name__)

_AS_THE_TEACHER = ("window_settings", "batch_size", "max_answer_length")
_WIDTHS = (0.75, 0.5, 0.25)  # relative to the teacher: of hidden states, or of feed-forward layers alone
_SPEEDS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
_ABOUT = 0.9  # students from this share of the highest cost on are about as costly
_WARM_UP = 3  # questions that are asked before time is taken
_BUDGET = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms(?:\s*/\s*question)?|MB)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Budget:
    """The budget of a student: milliseconds per question, or 10^6 bytes of its model file.

    Attributes:
        amount: The largest value that is within the budget.
        unit: "ms" or "MB".
    """

    amount: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Parse "20 ms/question" or "10 MB".

        Raises:
            DistilError: The text is neither.
        """
        found = _BUDGET.fullmatch(text)
        if found is None or float(found.group(1)) == 0:
            raise DistilError(f"budget must be written like '20 ms/question' or '10 MB', not {text!r}")
        return cls(float(found.group(1)), "MB" if found.group(2).lower() == "mb" else "ms")

    def cost(self, milliseconds: float, megabytes: float) -> float:
        """What of the two the budget limits."""
        return milliseconds if self.unit == "ms" else megabytes


@dataclass(frozen=True)
class Candidate:
    """The shape of a student and its cost.

    Attributes:
        layers: The number of layers.
        hidden_size: The hidden size.
        intermediate_size: The width of the feed-forward layers; None where they are not known.
        parameters: The number of parameters.
        megabytes: The size of the model file for the backend, in 10^6 bytes.
        milliseconds: The median latency of a single question.
        fits: Whether it is within the budget.
        making: The arguments of `haystack-distill student` that create it; `data` stands for your own questions.
    """

    layers: int
    hidden_size: int
    intermediate_size: int | None
    parameters: int
    megabytes: float
    milliseconds: float
    fits: bool
    making: dict[str, Any]


@dataclass(frozen=True)
class SpeedCandidate:
    """A speed of a reader with early exits, what it costs and how right its answers are.

    Attributes:
        speed: The speed, from 0 (all layers run) on.
        f1: F1 on the questions, in per cent.
        exact: Exact match, in per cent.
        layers_per_window: How many layers ran for a window, on average.
        milliseconds: The median latency of a question with all its passages.
        fits: Whether it is within the budget.
    """

    speed: float
    f1: float
    exact: float
    layers_per_window: float
    milliseconds: float
    fits: bool


def suggest_speed(
    reader: Reader,
    budget: Budget,
    examples: datasets.Dataset,
    *,
    questions: int = 200,
    passages: int = 1,
    speeds: Sequence[float] = _SPEEDS,
) -> list[SpeedCandidate]:
    """Measure speeds of a reader with early exits on questions of the kind that it will be asked.

    Args:
        reader: The reader.
        budget: The budget of a question, in milliseconds.
        examples: Labelled examples.
        questions: How many of their questions to ask.
        passages: How many passages each question comes with: its own context and others of the same title. More of them
            can leave early.
        speeds: The speeds to measure.

    Returns:
        A candidate for each speed, in order. `best_speed` chooses.

    Raises:
        DistilError: The reader has no early exits, the budget is one of megabytes, or the data has too few passages.
    """
    if not isinstance(reader.model, EarlyExitModel):
        raise DistilError("the reader has no early exits, so it has one speed; make one with students.early_exit")
    if budget.unit != "ms":
        raise DistilError("a speed does not change the size of a model file; give a budget like '20 ms/question'")
    chosen, texts = with_other_passages(examples, questions, passages)
    found = []
    for speed in speeds:
        one = reader.replace(speed=speed)
        answer_with_passages(one, chosen["question"][:_WARM_UP], texts[:_WARM_UP])
        answers = answer_with_passages(one, chosen["question"], texts)
        metrics = squad_metrics(chosen, dict(zip(chosen["id"], answers.texts, strict=True)))
        milliseconds = 1000 * statistics.median(answers.seconds)
        found.append(
            SpeedCandidate(
                speed=speed,
                f1=metrics["f1"],
                exact=metrics["exact"],
                layers_per_window=statistics.fmean(answers.layers),
                milliseconds=milliseconds,
                fits=milliseconds <= budget.amount,
            )
        )
    return found


def best_speed(candidates: Sequence[SpeedCandidate]) -> SpeedCandidate | None:
    """Of the speeds within the budget the one with the highest F1, the lowest of equal ones; None if none fits."""
    return max((one for one in candidates if one.fits), key=lambda one: (one.f1, -one.speed), default=None)


def suggest_students(
    teacher: Reader,
    budget: Budget,
    pairs: Sequence[tuple[str, str]],
    *,
    backend: str = "torch",
    num_threads: int | None = None,
) -> list[Candidate]:
    """Measure candidate students of a teacher, largest first; `best_student` chooses.

    Candidates are the teacher cut to each smaller number of layers; with all and half of its layers, the teacher pruned
    to three quarters, half and a quarter of its feed-forward neurons, where its architecture can do with fewer; the
    shape of `students.pruning.half_shape`; and, with half and a quarter of its layers, models of three quarters, half
    and a quarter of its width. Nothing is trained and no importance is measured, because cost depends on the shape
    only.

    Args:
        teacher: The reader to distil.
        budget: The budget of the student.
        pairs: Typical questions and contexts, to measure the latency.
        backend: The backend that students will run on, see `Reader.load`; "auto": the fastest for each, int8 aside.
        num_threads: CPU threads per forward pass.

    Raises:
        DistilError: The teacher cannot be cut or exported, or there are no questions.
    """
    check_backend(backend)
    if not pairs:
        raise DistilError("there are no questions to time: give at least one")
    found = []
    usual = resolve_precision("auto", teacher.device, teacher.model.config.model_type)
    for making, student in _candidates(teacher):
        with temporary_directory() as scratch, writing(Path(scratch)):
            _export_for(backend, student, scratch)
            running: dict[str, Any] = {name: getattr(teacher, name) for name in _AS_THE_TEACHER}
            # Each runtime has its own "auto": the teacher's precision is meant for it only where that was asked for.
            if backend == "torch" or (not backend.startswith("onnx") and teacher.precision != usual):
                running["precision"] = teacher.precision
            if backend in ("torch", "auto"):
                running["device"] = teacher.device
            if backend == "auto":
                running["passages"] = 1
            served = Reader.load(scratch, backend=backend, num_threads=num_threads, **running)
            milliseconds = milliseconds_per_question(served, pairs)
            files = FILES.get(served.backend, ("model.safetensors",))
            megabytes = sum((Path(scratch) / file).stat().st_size for file in files) / 1e6
        cost = budget.cost(milliseconds, megabytes)
        config = student.model.config
        found.append(
            Candidate(
                layers=int(config.num_hidden_layers),
                hidden_size=int(config.hidden_size),
                intermediate_size=feed_forward_size(student.model),
                parameters=student.n_parameters,
                megabytes=megabytes,
                milliseconds=milliseconds,
                fits=cost <= budget.amount,
                making=making,
            )
        )
    return sorted(found, key=lambda one: (-one.parameters, -one.milliseconds))


def best_student(candidates: Sequence[Candidate], budget: Budget) -> Candidate | None:
    """Of the candidates within the budget the one to distil; None if none fits.

    Of those that keep the teacher's weights (any at all where none does) and cost at most a tenth less than the
    costliest, the one with the most layers, and of these the one with the most neurons: at the same cost, many narrow
    layers came out better than few whole ones (docs/methods/measured.md).

    Args:
        candidates: What `suggest_students` returned.
        budget: The budget.
    """
    fitting = [one for one in candidates if one.fits]
    kept = [one for one in fitting if "hidden_size" not in one.making] or fitting
    costs = [budget.cost(one.milliseconds, one.megabytes) for one in kept]
    near = [one for one, cost in zip(kept, costs, strict=True) if cost >= _ABOUT * max(costs)]
    return max(near, key=lambda one: (one.layers, one.intermediate_size or 0, one.parameters), default=None)


def _export_for(backend: str, student: Reader, directory: str) -> None:
    """Write a student, exported so that a backend can run it; with "auto" for each runtime that can.

    Raises:
        DistilError: The backend cannot run it.
    """
    from haystack_distill.export.exporting import ExportSettings, export_reader

    if backend == "torch":
        student.save(directory)
        return
    if backend != "auto":
        int8 = "dynamic" if backend in INT8_BACKENDS else "none"
        export_reader(student, directory, ExportSettings(int8=int8, runtime=runtime_of(backend)))
        return
    runtimes = [one for one in installed_runtimes() if find_spec("onnx") is not None]  # which both are exported by
    for runtime in ["all", *runtimes] if len(runtimes) > 1 else runtimes:
        try:
            export_reader(student, directory, ExportSettings(int8="none", runtime=runtime))
        except DistilError:
            logger.debug("this student does not run in %s", runtime, exc_info=True)
        else:
            if runtime == "all":
                return
    if not any(Path(directory).iterdir()):  # none can run it
        student.save(directory)


def _candidates(teacher: Reader) -> Iterator[tuple[dict[str, Any], Reader]]:
    """Candidate students with the arguments that create them."""
    config = teacher.model.config
    if config.model_type == MODEL_TYPE:
        raise DistilError("a BiLSTM reader has no layers that could be left out; suggest students of its teacher")
    total, width, heads = (
        int(getattr(config, name)) for name in ("num_hidden_layers", "hidden_size", "num_attention_heads")
    )
    for layers in range(total - 1, 0, -1):
        yield {"layers": layers}, students.from_teacher(teacher, layers=layers)
    for layers, shapes in itertools.groupby(_pruned_shapes(teacher), key=lambda shape: shape[0]):
        whole = layers == total
        cut = teacher if whole else students.from_teacher(teacher, layers=layers)
        for _, neurons in shapes:
            making = {} if whole else {"layers": layers}
            yield making | {"intermediate_size": neurons, "data": "train.json"}, narrowed(cut, neurons)
    head_width = width // heads
    for layers in sorted({max(1, total // 2), max(1, total // 4)}, reverse=True):
        for share in _WIDTHS:
            fewer = round(heads * share)
            if not 1 <= fewer < heads or not hasattr(config, "intermediate_size"):
                continue
            shape = {
                "num_hidden_layers": layers,
                "num_attention_heads": fewer,
                "hidden_size": fewer * head_width,
                "intermediate_size": round(config.intermediate_size * fewer / heads),
            }
            try:
                student = students.from_config(teacher, **shape)
            except DistilError:  # such as MobileBERT's, whose heads divide another width
                logger.debug("there is no %s of the shape %s", config.model_type, shape, exc_info=True)
                continue
            yield shape, student


def _pruned_shapes(teacher: Reader) -> list[tuple[int, int]]:
    """Layers and neurons of candidates with fewer neurons, largest first; none where there is no such model."""
    size = feed_forward_size(teacher.model)
    if size is None:
        return []
    total = int(teacher.model.config.num_hidden_layers)
    shapes = {(layers, round(size * share)) for layers in (total, max(1, total // 2)) for share in _WIDTHS}
    half = half_shape(teacher)
    shapes |= set() if half is None else {half}
    return sorted(((layers, neurons) for layers, neurons in shapes if 1 <= neurons < size), reverse=True)
