"""LanguageModelTrainer: general distillation of a language model on plain text, before training on questions."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from transformers import TrainerCallback

from haystack_distill.data.corpus import Corpus, CorpusSource
from haystack_distill.data.text_windows import TextSettings, TextWindows
from haystack_distill.errors import DistilError
from haystack_distill.models.language_model import LanguageModel
from haystack_distill.objectives.masked_language_model import MaskedLanguageModel
from haystack_distill.objectives.method import Method, parts_of
from haystack_distill.objectives.objective import CORPUS, Objective
from haystack_distill.teachers.live import LiveTeacher, require_one_device, require_positions, require_same_tokenizer
from haystack_distill.training.adaptation import Adaptation
from haystack_distill.training.loop import require_own_weights
from haystack_distill.training.run import MethodSource, Run
from haystack_distill.training.run_directory import RunResult
from haystack_distill.training.run_record import NOT_COMPARABLE
from haystack_distill.training.settings import TrainingSettings
from haystack_distill.utils.checks import check_type
from haystack_distill.utils.files import expand_user
from haystack_distill.utils.model_inputs import takes_token_types


class LanguageModelTrainer:
    """Trains a language model in place on a corpus: general distillation, TinyBERT's first step (arXiv 1909.10351).

    Args:
        student: The language model to train; its weights change.
        output_dir: Directory for the checkpoints, the log and the finished model. None: only the weights in memory are
            kept.
        settings: See `TrainingSettings`. A corpus is a stream, so `max_steps` sets the length of the run, all steps
            count as one epoch, and nothing is evaluated.
        text: How text is cut into windows, see `TextSettings`.

    Example:
        >>> from haystack_distill.objectives import IntermediateLayers  # doctest: +SKIP
        >>> teacher = LanguageModel.load("google-bert/bert-base-uncased")  # doctest: +SKIP
        >>> student = students.from_teacher(teacher, layers=4)  # doctest: +SKIP
        >>> settings = TrainingSettings(max_steps=10_000, checkpoint_every=500)  # doctest: +SKIP
        >>> trainer = LanguageModelTrainer(student, "general", settings)  # doctest: +SKIP
        >>> trainer.distil(teacher, "texts/", IntermediateLayers())  # doctest: +SKIP
    """

    def __init__(
        self,
        student: LanguageModel,
        output_dir: str | Path | None = None,
        settings: TrainingSettings | None = None,
        text: TextSettings | None = None,
    ) -> None:
        check_type("settings", settings, TrainingSettings)
        check_type("text", text, TextSettings)
        self.student = student
        self.output_dir = None if output_dir is None else expand_user(output_dir)
        self.settings = settings or TrainingSettings()
        self.text = text or TextSettings()

    def distil(
        self,
        teacher: LanguageModel | None,
        corpus: CorpusSource | Corpus,
        method: MethodSource,
        *,
        adaptation: Adaptation | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> RunResult:
        """Train the student with any method that does not need a question answering head.

        The teacher runs in every step, once per batch, also for a sum of methods such as
        `IntermediateLayers() + MaskedLanguageModel()`.

        Args:
            teacher: A language model with the student's tokenizer. It is not changed. None for a method without a
                teacher: `objectives.MaskedLanguageModel` with the masked words alone.
            corpus: Text; see `Corpus`.
            method: As for `ReaderTrainer.distil`; one that learns from text without questions, such as
                `objectives.IntermediateLayers` and `objectives.MaskedLanguageModel`.
            adaptation: Which weights are trained, see `training.adaptation`. None for all.
            callbacks: Additional callbacks for transformers' Trainer.

        Returns:
            The result of the run, without metrics. The student has the trained weights.

        Raises:
            DistilError: Teacher, student and method do not match, a setting is missing, or the output directory cannot
                be used.
            DataError: The corpus cannot be read or is empty.
        """
        run = Run(self.student, method, self.settings, self.output_dir, adaptation=adaptation, callbacks=callbacks)
        steps = self._check(teacher)
        source = corpus if isinstance(corpus, Corpus) else Corpus(corpus)
        objective = self._objective(run, teacher)
        live = None if teacher is None else LiveTeacher(teacher)
        windows = TextWindows(
            source,
            self.student.tokenizer,
            self.text,
            n_steps=steps,
            seed=self.settings.seed,
            token_types=takes_token_types(self.student.model) or (live is not None and live.token_types),
            processes=run.processes,
        )
        # Only the main process needs the content, to record it in the output directory.
        read = self.output_dir is not None and run.processes.is_main_process
        record = run.record(
            live,
            {
                "corpus": source.identity,
                "corpus_content": _content_of(source) if read else None,
                "text": asdict(self.text),
            },
        )
        with windows:
            return run.execute(objective, windows, record, teacher=live)

    def check(
        self, teacher: LanguageModel | None, method: MethodSource, *, adaptation: Adaptation | None = None
    ) -> Objective:
        """Run the checks of `distil` without reading a corpus or training; nothing is changed.

        Args:
            teacher: As for `distil`.
            method: As for `distil`.
            adaptation: As for `distil`.

        Returns:
            The objective of the method for this student and teacher.

        Raises:
            DistilError: Teacher, student, method and adaptation do not match, or a setting is missing.
        """
        run = Run(self.student, method, self.settings, None, adaptation=adaptation)
        self._check(teacher)
        objective = self._objective(run, teacher)
        run.check_adaptation(False, objective)
        return objective

    def _objective(self, run: Run, teacher: LanguageModel | None) -> Objective:
        objective = run.objective(None if teacher is None else teacher.model.config, CORPUS)
        if teacher is None and objective.teacher_request:
            raise DistilError("this method needs a teacher; give one")
        if teacher is not None and not objective.teacher_request:
            raise DistilError("this method learns from the text alone, so a teacher has no effect; set teacher to None")
        self._check_heads(run.method, objective, teacher)
        return objective

    def _check_heads(self, method: Method | Objective, objective: Objective, teacher: LanguageModel | None) -> None:
        for role, model, request in (
            ("teacher", teacher, objective.teacher_request),
            ("student", self.student, objective.student_request),
        ):
            if request.logits and model is not None and not model.has_head:
                raise DistilError(
                    f"the {role} is an encoder without a head for masked language modelling; take a masked language "
                    "model, or the method intermediate_layers, which needs no head"
                )
        if self.text.mask_probability:
            return
        if objective.weights.get("masked_words"):
            raise DistilError("mask_probability=0 leaves no masked words to predict; set masked_word_weight=0 too")
        for _, one in parts_of(method) if isinstance(method, Method) else ():
            if isinstance(one, MaskedLanguageModel) and one.soft_target_weight and one.soft_target_tokens == "masked":
                raise DistilError(
                    "mask_probability=0 leaves no masked words to compare; set soft_target_tokens='all', or raise it"
                )

    def _check(self, teacher: LanguageModel | None) -> int:
        """Check settings, student and teacher; return the number of steps."""
        settings = self.settings
        if settings.max_steps is None:
            raise DistilError("a corpus is an endless stream; set max_steps to the length of the run")
        settings.require_nothing_measured("on a corpus, where nothing is measured", "leave it out")
        require_positions("student", self.student, self.text.max_seq_len)
        if teacher is not None:
            require_own_weights(self.student, teacher)
            require_same_tokenizer(self.student, teacher)
            require_one_device(self.student, teacher)
            require_positions("teacher", teacher, self.text.max_seq_len)
        return settings.max_steps


def _content_of(corpus: Corpus) -> str:
    return corpus.fingerprint or (
        f"{NOT_COMPARABLE}an IterableDataset without a name; give it one that changes with its content: "
        "Corpus(dataset, name='...')"
    )
