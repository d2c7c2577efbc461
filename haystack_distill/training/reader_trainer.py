"""ReaderTrainer: trains a reader from labels, from a teacher's logits or layers, or from several of them at once."""

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import TrainerCallback

from haystack_distill.data.mixture import tempered_mixture, transfer_mixture
from haystack_distill.data.squad.held_out import check_share, hold_out, without_articles
from haystack_distill.data.squad.load import content_hash, load_examples
from haystack_distill.data.squad.metrics import require_measurable
from haystack_distill.data.transfer import TransferSet
from haystack_distill.data.windows import Windows
from haystack_distill.errors import DistilError, in_section
from haystack_distill.evaluation.processes import evaluate_distributed
from haystack_distill.models.calibration import RECORD, forget_calibration
from haystack_distill.models.heads import Heads
from haystack_distill.models.reader import ExampleSource, Reader
from haystack_distill.objectives.intermediate_layers import IntermediateLayers
from haystack_distill.objectives.labels import Labels
from haystack_distill.objectives.objective import QUESTIONS, Objective
from haystack_distill.objectives.prediction_layer import PredictionLayer
from haystack_distill.teachers.by_data import Sources
from haystack_distill.teachers.choice import TeacherSource, readers_of, teacher_for
from haystack_distill.teachers.teacher import Teacher
from haystack_distill.training.adaptation import Adaptation
from haystack_distill.training.dev_loss import DevLoss
from haystack_distill.training.loop import require_own_weights
from haystack_distill.training.run import MethodSource, Run
from haystack_distill.training.run_directory import RunResult
from haystack_distill.training.run_record import method_name
from haystack_distill.training.settings import TrainingSettings
from haystack_distill.utils.checks import check_type
from haystack_distill.utils.files import expand_user
from haystack_distill.utils.stopwatch import part

logger = logging.getLogger(__name__)

_ROWS_AT_A_TIME = 1000
_WINDOWS_TO_CHECK = 256


class ReaderTrainer:
    """Trains a reader in place.

    Args:
        student: The reader to train; its weights change.
        output_dir: Directory for the checkpoints, the log and the finished reader. None: only the weights in memory are
            kept.
        settings: See `TrainingSettings`.
        cache_dir: Directory for cached windows and teacher outputs, see `utils.cache.cache_directory`.

    Example:
        >>> from haystack_distill import Reader, ReaderTrainer, students  # doctest: +SKIP
        >>> from haystack_distill.objectives import IntermediateLayers, PredictionLayer  # doctest: +SKIP
        >>> teacher = Reader.load("deepset/roberta-base-squad2")  # doctest: +SKIP
        >>> student = students.from_teacher(teacher, layers=6)  # doctest: +SKIP
        >>> method = IntermediateLayers() + PredictionLayer(temperature=2.0)  # doctest: +SKIP
        >>> ReaderTrainer(student, "student").distil(teacher, "train.json", method)  # doctest: +SKIP
    """

    def __init__(
        self,
        student: Reader,
        output_dir: str | Path | None = None,
        settings: TrainingSettings | None = None,
        *,
        cache_dir: str | Path | None = None,
    ) -> None:
        check_type("settings", settings, TrainingSettings)
        self.student = student
        self.output_dir = None if output_dir is None else expand_user(output_dir)
        self.settings = settings or TrainingSettings()
        self.cache_dir = cache_dir

    def distil(
        self,
        teacher: TeacherSource | None,
        data: ExampleSource | Sources,
        method: MethodSource,
        dev_data: ExampleSource | None = None,
        *,
        dev_split: float | None = None,
        transfer: TransferSet | None = None,
        adaptation: Adaptation | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> RunResult:
        """Train the student with any method.

        If the method needs only the teacher's logits, the teacher runs once over the data and its outputs are cached on
        disk; its tokenizer and windows may then differ from the student's. If the method needs hidden states or
        attention scores, the teacher runs in every step, once per batch, on the student's windows.

        Args:
            teacher: A reader, several readers (their predictions are averaged), or a `teachers.Teacher`. It is not
                changed. None for a method without a teacher.
            data: Examples, as `data.squad.load.load_examples` accepts them; whether they need labels depends on the
                method. `teachers.Sources` for several parts of the data, each with a teacher of its own or none; then
                `teacher` is None.
            method: A method such as `objectives.PredictionLayer()`, a weighted sum of methods
                (`0.8 * PredictionLayer() + 0.2 * IntermediateLayers()`), a method's name in `training.methods.METHODS`
                for its default options, or an `objectives.Objective` of your own. A run with code of your own can only
                be resumed with the same code.
            dev_data: Examples to evaluate on; never trained on. Where sources have heads of their own, the student is
                evaluated, and kept as the best, by the head that is saved in the output directory itself: the one that
                sources without a head of their own share, else that of the first source.
            dev_split: Without `dev_data`, the share of the articles of `data` to evaluate on and not to train on, such
                as 0.1; the seed of the settings chooses them, see `data.squad.held_out.hold_out`.
            transfer: Unlabelled examples to mix into the steps beside `data`, see `data.transfer.TransferSet`.
            adaptation: Which weights are trained, see `training.adaptation`. None for all.
            callbacks: Additional callbacks for transformers' Trainer.

        Returns:
            The result of the run. The student has the trained weights.

        Raises:
            DistilError: Teacher, student, method and data do not match, a setting is missing, or the output directory
                cannot be used.
            DataError: The data cannot be read.
        """
        check_type("transfer", transfer, TransferSet)
        run = Run(self.student, method, self.settings, self.output_dir, adaptation=adaptation, callbacks=callbacks)
        self._check_measuring(dev_data is not None, dev_split)
        source = _source_of_teaching(teacher, data, transfer=transfer, dev_split=dev_split)
        objective, chosen = self._fit(run, source)
        heads = self._heads(data, objective)
        parts: list[datasets.Dataset] = []
        with run.processes.main_process_first():  # the other processes load its windows from the cache
            if isinstance(data, Sources):
                parts = [load_examples(source.data, cache_dir=self.cache_dir) for source in data.sources]
                labelled = datasets.concatenate_datasets(parts)
            else:
                labelled = load_examples(data, cache_dir=self.cache_dir)
            dev_examples = None if dev_data is None else load_examples(dev_data, cache_dir=self.cache_dir)
            if dev_split is not None:
                labelled, dev_examples = hold_out(
                    labelled, dev_split, seed=self.settings.seed, cache_dir=self.cache_dir
                )
            examples = labelled
            if transfer is not None:
                more = transfer.load(self.settings.seed, cache_dir=self.cache_dir)
                if dev_split is not None:
                    assert dev_examples is not None
                    with in_section("transfer"):
                        more = without_articles(more, dev_examples, cache_dir=self.cache_dir)
                examples = datasets.concatenate_datasets([labelled, more])
            windows = self.student.cut(examples, cache_dir=self.cache_dir)
            dev_windows = None
            if dev_examples is not None:
                require_measurable(dev_examples)
                dev_windows = self.student.cut(dev_examples, cache_dir=self.cache_dir)
        _require_labels(objective, teacher, examples)
        _require_unlabelled(objective, examples)
        described: dict[str, Any] = {}
        if isinstance(data, Sources):
            _require_use(objective, data, parts)
            sizes = [len(part) for part in parts]
            windows.mixture = tempered_mixture(windows.example_of, sizes, data.sampling_exponent)
            named = [source.head for source in data.sources]
            if heads is not None:
                numbers = tuple(heads.names.index(name) for name in named)
                windows.mixture = replace(windows.mixture, heads=numbers)
            entries = {"examples": sizes, "sampling_exponent": data.sampling_exponent, "heads": named}
            described = {"sources": entries}
        if transfer is not None:
            _require_effect(objective)
            n_others = len(examples) - len(labelled)
            windows.mixture = transfer_mixture(windows.example_of, (len(labelled), n_others), transfer.proportion)
            described = {"transfer": {"examples": n_others, "proportion": transfer.proportion}}
        if dev_split is not None:
            described["dev_split"] = dev_split
        if run.processes.is_main_process:
            windows.warn_of_lost_answers()
            if dev_windows is not None:
                warn_of_shared_contexts(examples, dev_windows.examples)
        if chosen is not None and chosen.token_types:
            windows.token_types = True
        config = self.student.model.config
        calibration = None if objective.keeps_answers else getattr(config, RECORD, None)
        if calibration is not None:
            forget_calibration(config)
            if run.processes.is_main_process:
                logger.info("the student was calibrated, which training undoes; calibrate what comes out")
        record = run.record(
            chosen,
            {
                "data": {"examples": len(examples), "windows": len(windows), "sha256": content_hash(examples)},
                **described,
                "dev_data": None if dev_windows is None else content_hash(dev_windows.examples),
                "windows": asdict(self.student.window_settings),
                "measuring": self._scoring() if dev_windows is not None and self.settings.evaluate_every else None,
            },
        )

        begun = False

        def prepare() -> None:
            nonlocal begun
            begun = True
            if chosen is not None:
                with part("teacher"):
                    chosen.prepare(
                        examples,
                        windows,
                        cache_dir=self.cache_dir,
                        progress=self.settings.progress,
                        processes=run.processes,
                    )
                    if objective.reads_cached_logits:
                        objective.check_windows(functools.partial(_with_answers, windows, chosen))

        def on_trained() -> None:
            if objective.student_request.logits:  # otherwise the head is unchanged
                self.student.untrained = ()

        evaluate = None
        if dev_windows is not None:
            evaluate = functools.partial(self._evaluate, dev_windows, run)
        try:
            return run.execute(
                objective,
                windows,
                record,
                teacher=chosen,
                heads=heads,
                prepare=prepare,
                evaluate=evaluate,
                on_trained=on_trained,
            )
        except DistilError:
            if calibration is not None and not begun:  # the run was refused, and the student is what it was
                setattr(config, RECORD, calibration)
            raise

    def check(
        self,
        teacher: TeacherSource | None,
        data: datasets.Dataset | Sources,
        method: MethodSource,
        *,
        measured: bool = False,
        transfer: TransferSet | None = None,
        adaptation: Adaptation | None = None,
    ) -> Objective:
        """Run the checks of `distil` without training; nothing is changed.

        Args:
            teacher: As for `distil`.
            data: Examples, as `data.squad.load.load_examples` returns them, or `Sources` of such.
            method: As for `distil`.
            measured: Whether there will be dev data.
            transfer: As for `distil`; it is not read.
            adaptation: As for `distil`.

        Returns:
            The objective of the method for this student and teacher.

        Raises:
            DistilError: Teacher, student, method, adaptation and data do not match, or a setting is missing.
        """
        run = Run(self.student, method, self.settings, None, adaptation=adaptation)
        self._check_measuring(measured, None)
        objective, _ = self._fit(run, _source_of_teaching(teacher, data, transfer=transfer, dev_split=None))
        if isinstance(data, Sources):
            self._heads(data, objective)
            parts = [load_examples(source.data, cache_dir=self.cache_dir) for source in data.sources]
            _require_use(objective, data, parts)
            data = datasets.concatenate_datasets(parts)
        _require_labels(objective, teacher, data)
        if transfer is None:
            _require_unlabelled(objective, data)
        else:
            _require_effect(objective)
        run.check_adaptation(measured, objective)
        return objective

    def train(
        self,
        data: ExampleSource,
        dev_data: ExampleSource | None = None,
        *,
        dev_split: float | None = None,
        adaptation: Adaptation | None = None,
    ) -> RunResult:
        """Train on labels only: `distil` with `objectives.Labels`.

        Args:
            data: Labelled examples, as `data.squad.load.load_examples` accepts them.
            dev_data: Examples to evaluate on; never trained on.
            dev_split: See `distil`.
            adaptation: See `distil`.

        Returns:
            The result of the run.

        Raises:
            DistilError: No example is labelled, or see `distil`.
        """
        return self.distil(None, data, Labels(), dev_data, dev_split=dev_split, adaptation=adaptation)

    def distil_prediction_layer_from(
        self,
        teacher: Reader,
        data: ExampleSource,
        dev_data: ExampleSource | None = None,
        *,
        temperature: float = PredictionLayer.temperature,
        distillation_loss_weight: float = PredictionLayer.distillation_loss_weight,
        distillation_loss: str | Callable = PredictionLayer.distillation_loss,
        dev_split: float | None = None,
        transfer: TransferSet | None = None,
        adaptation: Adaptation | None = None,
    ) -> RunResult:
        """Distil the prediction layer: `distil` with `objectives.PredictionLayer` and these options.

        Args:
            teacher: A trained reader. It is not changed.
            data: Examples; unlabelled ones have the distillation loss only.
            dev_data: Examples to evaluate on; never trained on.
            temperature: See `objectives.PredictionLayer`.
            distillation_loss_weight: See `objectives.PredictionLayer`.
            distillation_loss: See `objectives.PredictionLayer`.
            dev_split: See `distil`.
            transfer: See `distil`.
            adaptation: See `distil`.

        Returns:
            The result of the run.

        Raises:
            DistilError: The teacher's head is untrained, so that its answers are random, or see `distil`.
        """
        method = PredictionLayer(temperature, distillation_loss_weight, distillation_loss)  # type: ignore[arg-type]
        given: dict[str, Any] = {"dev_split": dev_split, "transfer": transfer, "adaptation": adaptation}
        return self.distil(teacher, data, method, dev_data, **given)

    def distil_intermediate_layers_from(
        self,
        teacher: Reader,
        data: ExampleSource,
        dev_data: ExampleSource | None = None,
        *,
        layer_mapping: str | Sequence[int | None] = IntermediateLayers.layer_mapping,
        embedding_loss_weight: float = IntermediateLayers.embedding_loss_weight,
        hidden_loss_weight: float = IntermediateLayers.hidden_loss_weight,
        attention_loss_weight: float = IntermediateLayers.attention_loss_weight,
        dev_split: float | None = None,
        transfer: TransferSet | None = None,
        adaptation: Adaptation | None = None,
    ) -> RunResult:
        """Distil the intermediate layers: `distil` with `objectives.IntermediateLayers` and these options.

        The question answering head is not trained: distil the prediction layer afterwards. Labels are not used.

        Args:
            teacher: A reader with the student's tokenizer. It is not changed.
            data: Examples, labelled or not.
            dev_data: Examples to evaluate on; never trained on.
            layer_mapping: See `objectives.IntermediateLayers`.
            embedding_loss_weight: See `objectives.IntermediateLayers`.
            hidden_loss_weight: See `objectives.IntermediateLayers`.
            attention_loss_weight: See `objectives.IntermediateLayers`.
            dev_split: See `distil`.
            transfer: See `distil`.
            adaptation: See `distil`.

        Returns:
            The result of the run.

        Raises:
            DistilError: Tokenizers or devices differ, the windows are longer than the teacher's positions, or layers
                and heads do not match, or see `distil`.
        """
        weights = (embedding_loss_weight, hidden_loss_weight, attention_loss_weight)
        method = IntermediateLayers(layer_mapping, *weights)  # type: ignore[arg-type]
        given: dict[str, Any] = {"dev_split": dev_split, "transfer": transfer, "adaptation": adaptation}
        return self.distil(teacher, data, method, dev_data, **given)

    def _check_measuring(self, measured: bool, dev_split: float | None) -> None:
        """Check that there is one source of dev data at most, and without any nothing that needs it."""
        if dev_split is not None:
            check_share(dev_split)
            if measured:
                raise DistilError("dev_data and dev_split are two ways to one thing; give one of them")
        elif not measured:
            self.settings.require_nothing_measured()

    def _fit(self, run: Run, teacher: TeacherSource | Sources | None) -> tuple[Objective, Teacher | None]:
        """The objective and the teacher that it needs, checked."""
        self.student.require_weights()
        readers = [] if teacher is None else readers_of(teacher)
        for reader in readers:
            require_own_weights(self.student, reader)
        config = readers[0].model.config if readers else getattr(teacher, "config", None)
        objective = run.objective(config, QUESTIONS)
        if objective.keeps_answers and objective.student_request.exits and self.student.untrained:
            raise DistilError(
                "the branches learn from the student's own last layer, whose answers are random: its files hold no "
                f"weights for {', '.join(self.student.untrained)}; train the student on questions first"
            )
        if not objective.trains_student:
            self.settings.require_nothing_measured(
                f"with {method_name(run.method)}, which does not change the student", "leave it out"
            )
        return objective, self._teacher(teacher, objective)

    def _teacher(self, source: TeacherSource | Sources | None, objective: Objective) -> Teacher | None:
        """The teacher that the objective needs, checked; None for an objective without a teacher."""
        request = objective.teacher_request
        if source is None:
            if request:
                raise DistilError("this method needs a teacher; give one")
            return None
        if not request:
            raise DistilError("this method needs no teacher, so one would have no effect; set teacher to None")
        teacher = teacher_for(source, request)
        teacher.check(self.student, request)
        if objective.reads_cached_logits and not teacher.caches_logits:
            raise DistilError(
                "confidence_threshold needs the teacher's logits before the forward pass, but only those of readers "
                "are cached, for a method that needs nothing but logits; leave confidence_threshold out, or "
                "train on such a method in a stage of its own"
            )
        return teacher

    def _heads(self, data: ExampleSource | Sources, objective: Objective) -> Heads | None:
        """The heads of the student, where sources of the data have their own."""
        if not isinstance(data, Sources) or not data.heads:
            return None
        if not objective.student_request.logits:
            raise DistilError(
                "the method does not train the student's head, so heads of their own for sources have no effect; leave "
                "head out, or take a method that learns from answers or labels"
            )
        return Heads(self.student.model, data.heads)

    def _evaluate(self, windows: Windows, run: Run) -> dict[str, float]:
        """SQuAD metrics of the student on dev windows, and their loss where it is asked for."""
        loss = DevLoss(run.processes) if self.settings.best_by == "loss" else None
        observe = None if loss is None else loss.add
        metrics = evaluate_distributed(
            self.student, windows, run.processes, progress=self.settings.progress, observe=observe
        )
        return metrics if loss is None else metrics | {"loss": loss.mean()}

    def _scoring(self) -> dict[str, Any]:
        """The attributes of the student that decide its scores, and so which weights are the best."""
        names = ("max_answer_length", "no_answer_threshold", "precision")
        return {name: getattr(self.student, name) for name in names}


def _source_of_teaching(
    teacher: TeacherSource | None,
    data: ExampleSource | Sources,
    *,
    transfer: TransferSet | None,
    dev_split: float | None,
) -> TeacherSource | Sources | None:
    """What a student learns from: the teacher, or the teachers of the sources of its data where any has one.

    Raises:
        DistilError: There are sources, and something that does not go with them.
    """
    if isinstance(teacher, Sources):
        raise DistilError("sources are data with teachers; give them as the data and None as the teacher")
    if not isinstance(data, Sources):
        return teacher
    if teacher is not None:
        raise DistilError("each source has a teacher of its own, so another one has no effect; set teacher to None")
    if transfer is not None:
        raise DistilError("transfer has no effect with sources; give the transfer set as a source with a teacher")
    if dev_split is not None:
        raise DistilError("dev_split holds out of a single data set; give dev_data with sources")
    return data if data.any_teacher else None


def _require_use(objective: Objective, given: Sources, parts: Sequence[datasets.Dataset]) -> None:
    """Check that the objective learns something from a source without a teacher: from its labels, or without any.

    Raises:
        DistilError: The student would learn nothing from a source.
    """
    for number, (source, examples) in enumerate(zip(given.sources, parts, strict=True), start=1):
        if source.teacher is not None:
            continue
        labelled = any(examples["labelled"])
        if _learns_without_teacher(objective, labelled=labelled):
            continue
        if not labelled:
            raise DistilError(f"source {number} has neither a teacher nor labels; give it a teacher, or leave it out")
        raise DistilError(
            f"source {number} has no teacher, and the method does not learn from labels; give it a teacher, or take a "
            "method that learns from labels too"
        )


def _learns_without_teacher(objective: Objective, *, labelled: bool) -> bool:
    """Whether a window without a teacher, with a label or without, has a loss: asked of the masks of such a window."""
    one, tokens = torch.ones(1, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool)
    batch = {"labelled": one & labelled, "has_teacher": ~one, "weight": one.float()}
    batch |= {"input_ids": tokens.long(), "attention_mask": tokens.long(), "context_mask": tokens}
    batch |= {name: torch.zeros(1, dtype=torch.long) for name in ("window", "start_positions", "end_positions")}
    batch |= {name: torch.zeros(1, 2) for name in ("teacher_start_logits", "teacher_end_logits")}
    masks = objective.masks(batch)
    return any(bool(masks[name].any()) for name, weight in objective.weights.items() if weight)


def _with_answers(windows: Windows, teacher: Teacher) -> Iterator[dict[str, torch.Tensor]]:
    """All windows in batches, with the teacher's cached logits."""
    for first in range(0, len(windows), _WINDOWS_TO_CHECK):
        rows = windows.__getitems__(list(range(first, min(first + _WINDOWS_TO_CHECK, len(windows)))))
        batch = windows.collate(rows)
        yield batch | teacher.cached(batch)


def _labels_only(objective: Objective) -> bool:
    """Whether the objective uses nothing but labels."""
    used = {name for name, weight in objective.largest_weights().items() if weight}
    return all(name.partition("_")[0] == "labels" for name in used)


def _require_effect(objective: Objective) -> None:
    """Check that an objective learns from unlabelled examples, of which a transfer set consists."""
    if _labels_only(objective):
        raise DistilError(
            "the method learns from labels only, so a transfer set would have no effect; leave it out, or give a "
            "teacher and a method that learns from it"
        )


def _require_labels(objective: Objective, teacher: TeacherSource | None, examples: datasets.Dataset) -> None:
    """Check that there are labels if the objective uses nothing else."""
    if _labels_only(objective) and not any(examples["labelled"]):
        remedy = "distil from a teacher instead" if teacher is None else "take a method that learns from the teacher"
        raise DistilError(
            "none of the examples is labelled (a transfer set, or a file without answers such as Haystack 1's "
            f"augment_squad writes), so there is nothing to train on; {remedy}"
        )


def _require_unlabelled(objective: Objective, examples: datasets.Dataset) -> None:
    """Check that there are unlabelled examples if a part of the objective has no effect of its own without them."""
    if objective.needs_unlabelled and all(examples["labelled"]):
        raise DistilError(
            "all examples are labelled, and the method learns from the teacher on unlabelled ones; add a transfer set, "
            f"or set {objective.needs_unlabelled}"
        )


def warn_of_shared_contexts(train: datasets.Dataset, dev: datasets.Dataset) -> None:
    """Warn of contexts that are in both training and dev data: scores on them are higher than on unseen texts.

    Args:
        train: Rows as `data.squad.load.load_examples` returns them; read as a stream.
        dev: Likewise; eight bytes per context are held in memory.
    """
    dev_hashes = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *_context_hashes(dev)]))
    shared = np.zeros(len(dev_hashes), dtype=bool)
    for hashes in _context_hashes(train) if len(dev_hashes) else ():
        places = np.searchsorted(dev_hashes, hashes).clip(max=len(dev_hashes) - 1)
        shared[places[dev_hashes[places] == hashes]] = True
    if shared.any():
        logger.warning(
            "%d of the %d contexts of the dev data are in the training data too, so its scores are too high; remove "
            "them from one of the two",
            shared.sum(),
            len(dev_hashes),
        )


def _context_hashes(examples: datasets.Dataset) -> Iterator[np.ndarray]:
    """Python's hashes of the contexts in batches of rows; they are only comparable within one process."""
    for table in examples.select_columns(["context"]).with_format("arrow").iter(batch_size=_ROWS_AT_A_TIME):
        yield np.array([hash(context) for context in table["context"].unique().to_pylist()], dtype=np.int64)
