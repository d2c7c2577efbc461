"""What a recipe would do, and about how long that takes here: only a few optimiser steps are run, to time them."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np

from haystack_distill.data.mixture import tempered_mixture
from haystack_distill.data.squad.load import load_examples
from haystack_distill.errors import in_section
from haystack_distill.models.language_model import LanguageModel
from haystack_distill.models.reader import Reader
from haystack_distill.recipes.inputs import (
    Inputs,
    ReadyStage,
    ready_stages,
    run_settings,
    stages_of_reader,
    steps_of,
    windows_of,
)
from haystack_distill.recipes.runner import labels_stage
from haystack_distill.recipes.schema import LABELS_ONLY, Recipe, Stage, runs_needed
from haystack_distill.teachers.by_data import Sources
from haystack_distill.teachers.cached import CachedTeacher
from haystack_distill.teachers.choice import teacher_for
from haystack_distill.teachers.ensemble import EnsembleTeacher
from haystack_distill.training.language_model_trainer import LanguageModelTrainer
from haystack_distill.training.loop import require_evaluations
from haystack_distill.training.reader_trainer import ReaderTrainer
from haystack_distill.training.settings import TrainingSettings
from haystack_distill.utils.files import temporary_directory, writing

_SAMPLE = 200  # examples that are timed and weighed
_SHORT, _LONG = 1, 4  # optimiser steps of the two runs whose difference is the time of a step


@dataclass(frozen=True)
class PlannedStage:
    """What a stage would be.

    Attributes:
        name: Its directory's name.
        examples: What it trains on; 0 for text.
        windows: Windows of an epoch, estimated where the data is still to be augmented; of the whole stage for text.
        steps: Optimiser steps.
        seconds: Estimated time on this machine, a teacher pass included.
        cache_megabytes: Estimated disk for examples, windows and teacher outputs.
    """

    name: str
    examples: int
    windows: int
    steps: int
    seconds: float
    cache_megabytes: float


def plan_recipe(recipe: Recipe) -> list[PlannedStage]:
    """The stages of a recipe, timed on some of their data.

    Raises:
        DistilError: Something is wrong with the recipe.
        DataError: Something is wrong with the data.
    """
    inputs = Inputs(recipe)
    plan = []
    with temporary_directory() as scratch, writing(Path(scratch)):
        # All are checked before the first is timed. Their models stay in memory so long.
        for ready in list(ready_stages(inputs, inputs.first_student())):
            if ready.stage.corpus is not None:
                plan.append(_on_corpus(inputs, ready, scratch))
            else:
                plan.append(_on_data(inputs, ready, recipe.directory_of(ready.stage), scratch))
        if recipe.labels_only:
            counted = {recipe.directory_of(stage) for stage in stages_of_reader(recipe)}
            stage = labels_stage(recipe, sum(planned.steps for planned in plan if planned.name in counted))
            ready = ReadyStage(stage, inputs.first_reader(), None, inputs.examples)
            plan.append(_on_data(inputs, ready, LABELS_ONLY, scratch, weigh=False))
    return plan


def _on_corpus(inputs: Inputs, ready: ReadyStage, scratch: str) -> PlannedStage:
    stage, settings = ready.stage, ready.stage.settings
    assert stage.corpus is not None
    corpus = inputs.corpus(stage, Path(scratch))
    per_step = settings.batch_size * settings.gradient_accumulation_steps
    # A small buffer: what is timed is a step, not how long the first one waits.
    text = replace(stage.corpus.text, buffer_windows=min(stage.corpus.text.buffer_windows, _LONG * per_step))
    student, teacher = ready.student, ready.teacher
    assert isinstance(student, LanguageModel)
    assert teacher is None or isinstance(teacher, LanguageModel)

    method = inputs.method(stage, Path(scratch))

    def run(settings: TrainingSettings) -> object:
        trainer = LanguageModelTrainer(student.copy(), None, settings, text)
        return trainer.distil(teacher, corpus, method, adaptation=stage.adaptation.unmeasured())

    steps = settings.max_steps or 0
    seconds = steps * _seconds_per_step(inputs.recipe, stage, run)
    return PlannedStage(inputs.recipe.directory_of(stage), 0, steps * per_step, steps, seconds, 0)


def _on_data(inputs: Inputs, ready: ReadyStage, name: str, scratch: str, *, weigh: bool = True) -> PlannedStage:
    stage, student, examples = ready.stage, ready.student, ready.examples
    assert isinstance(student, Reader)
    assert not isinstance(ready.teacher, LanguageModel)
    assert examples is not None
    single = ready.teacher
    teacher: Reader | EnsembleTeacher | Sources | None = single
    if ready.sources is not None and ready.sources.any_teacher:
        teacher = ready.sources
    factor = 1 if stage.augment is None else stage.augment.multiplication_factor
    windows = student.cut(examples, cache_dir=inputs.recipe.cache_dir)
    whole = [examples]
    if ready.sources is not None:
        whole = [load_examples(one.data, cache_dir=inputs.recipe.cache_dir) for one in ready.sources.sources]
    parts = [load_examples(one.select(_sample_of(one)), cache_dir=scratch) for one in whole]
    sample, sources = datasets.concatenate_datasets(parts), None
    if ready.sources is not None:
        pairs = zip(ready.sources.sources, parts, strict=True)
        sources = replace(ready.sources, sources=[replace(source, data=part) for source, part in pairs])
    transfer, others = None, 0  # a transfer set of the same form, and how many windows it has
    if ready.transfer is not None:
        unlabelled = ready.transfer.load(cache_dir=inputs.recipe.cache_dir)
        others = len(student.cut(unlabelled, cache_dir=inputs.recipe.cache_dir))
        transfer = replace(ready.transfer, data=unlabelled.select(_sample_of(unlabelled)))
    teacher_seconds, megabytes = 0.0, _megabytes(windows.table) + (_megabytes(examples) if factor > 1 else 0.0)
    if teacher is not None:
        config = teacher.model.config if isinstance(teacher, Reader) else teacher.config
        request = stage.method.objective(student.model.config, config).teacher_request
        chosen, sampled = teacher_for(teacher, request), student.cut(sample, cache_dir=scratch)
        if sources is not None:
            sampled.mixture = tempered_mixture(sampled.example_of, [len(part) for part in parts])
        began = time.monotonic()
        chosen.prepare(sample, sampled, cache_dir=scratch, progress=False)
        teacher_seconds = (time.monotonic() - began) / len(sampled)
        cached = [member for member in chosen.members() if isinstance(member, CachedTeacher)]
        megabytes += sum(_megabytes(member.table) for member in cached) / len(sampled) * len(windows)

    method = inputs.method(stage, Path(scratch))
    # A stage that a later one takes something of leaves it here, after one optimiser step.
    used = any(stage.name == earlier for one in inputs.recipe.stages for _, _, earlier in runs_needed(one))
    directory = Path(scratch) / name if used else None

    def run(settings: TrainingSettings) -> object:
        trainer = ReaderTrainer(student.copy(), directory, replace(settings, overwrite=True), cache_dir=scratch)
        return trainer.distil(
            single, sources or sample, method, transfer=transfer, adaptation=stage.adaptation.unmeasured()
        )

    n_windows, steps = windows_of(stage, len(windows)), steps_of(stage, len(windows))
    with in_section(f"stage {stage.name}"):
        require_evaluations(stage.settings, stage.adaptation, steps)
    of_teacher = len(windows) * factor + others
    seconds = steps * _seconds_per_step(inputs.recipe, stage, run) + teacher_seconds * of_teacher
    return PlannedStage(name, len(examples) * factor, n_windows, steps, seconds, megabytes * factor if weigh else 0)


def _seconds_per_step(recipe: Recipe, stage: Stage, run: Callable[[TrainingSettings], object]) -> float:
    """The time of a longer run less that of a shorter one, over the difference of their steps."""
    settings = run_settings(recipe, stage, progress=False).unmeasured()
    settings = replace(settings, checkpoint_every=None, log_every=_LONG, tensorboard=False)
    taken = []
    for n_steps in (_SHORT, _SHORT, _LONG):  # the first one warms up
        began = time.monotonic()
        run(replace(settings, max_steps=n_steps))
        taken.append(time.monotonic() - began)
    return max(0.0, (taken[2] - taken[1]) / (_LONG - _SHORT))


def _megabytes(table: datasets.Dataset) -> float:
    return sum(Path(file["filename"]).stat().st_size for file in table.cache_files) / 1e6


def _sample_of(examples: datasets.Dataset) -> list[int]:
    """The rows that stages are timed on: evenly spaced, with one that has a label and one that has none, if any are."""
    rows = set(np.linspace(0, len(examples) - 1, min(_SAMPLE, len(examples))).astype(int).tolist())
    labelled = np.asarray(examples["labelled"], dtype=bool)
    for kind in (labelled, ~labelled):
        if kind.any() and not kind[sorted(rows)].any():
            rows.add(int(kind.argmax()))
    return sorted(rows)
