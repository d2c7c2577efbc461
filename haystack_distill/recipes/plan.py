"""What a recipe would do, and about how long that takes here: nothing of it is done but a few steps to time."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import datasets

from haystack_distill.data.squad.load import load_examples
from haystack_distill.data.text_windows import TextSettings
from haystack_distill.models.reader import Reader
from haystack_distill.recipes.runner import (
    ANSWERS,
    GENERAL,
    LABELS_ONLY,
    LAYERS,
    Ingredients,
    check_steps,
    distil_general,
    labels_training,
)
from haystack_distill.recipes.schema import Recipe, Training, layers_losses
from haystack_distill.teachers.cached import CachedTeacher
from haystack_distill.training.language_model_trainer import LanguageModelTrainer
from haystack_distill.training.reader_trainer import ReaderTrainer
from haystack_distill.training.settings import TrainingSettings
from haystack_distill.utils.files import temporary_directory, writing

_SAMPLE = 200  # examples that are timed and weighed
_SHORT, _LONG = 1, 4  # steps of the two runs whose difference is the time of a step


@dataclass(frozen=True)
class PlannedStep:
    """What a step would be.

    Attributes:
        name: Its directory's name.
        examples: What it trains on; 0 for text.
        windows: Windows of an epoch, estimated where the data is still to be augmented; of the whole step for text.
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


def plan_recipe(recipe: Recipe) -> list[PlannedStep]:
    """The steps of a recipe, timed on some of its data.

    Raises:
        DistilError: Something is wrong with the recipe.
        DataError: Something is wrong with the data.
    """
    have = Ingredients(recipe)
    plan = []
    with temporary_directory() as scratch, writing(Path(scratch)):
        if recipe.general:
            step = recipe.general
            student, teacher = have.general_pair(step)
            reader = have.reader_of(student)
        else:
            reader = have.first_student()
        check_steps(have, reader)
        if recipe.general:
            corpus = have.corpus(step, Path(scratch))
            # A small buffer: what is timed is a step, not how long the first one waits.
            buffer = min(step.buffer_windows, _LONG * step.batch_size * step.gradient_accumulation_steps)
            text = TextSettings(step.max_seq_len, step.mask_probability, buffer)

            def general(settings: TrainingSettings) -> object:
                return distil_general(step, LanguageModelTrainer(student.copy(), None, settings, text), teacher, corpus)

            n_steps = step.max_steps or 0
            windows = n_steps * step.batch_size * step.gradient_accumulation_steps
            plan.append(PlannedStep(GENERAL, 0, windows, n_steps, n_steps * _seconds_a_step(recipe, step, general), 0))
        sample = load_examples(have.examples.select(range(min(_SAMPLE, len(have.examples)))), cache_dir=scratch)
        if recipe.layers:
            plan.append(_plan_layers(have, reader, sample, scratch))
        if recipe.answers:
            plan.append(_plan_answers(have, reader, sample, scratch))
        if recipe.labels_only:
            total = sum(step.steps for step in plan)
            training = labels_training(recipe, total)
            seconds = _seconds_a_step(
                recipe, training, lambda settings: _trainer(reader, settings, scratch).train(sample)
            )
            windows = len(reader.cut(have.examples, cache_dir=recipe.cache_dir))
            plan.append(PlannedStep(LABELS_ONLY, len(have.examples), windows, total, total * seconds, 0))
    return plan


def _plan_layers(have: Ingredients, reader: Reader, sample: datasets.Dataset, scratch: str) -> PlannedStep:
    step = have.recipe.layers
    assert step is not None
    factor = 1 if step.data is not None else step.multiplication_factor
    examples = have.load(step.data, "train") if step.data is not None else have.examples
    windows = reader.cut(examples, cache_dir=have.recipe.cache_dir)
    seconds = _seconds_a_step(
        have.recipe,
        step,
        lambda settings: _trainer(reader, settings, scratch).distil_intermediate_layers_from(
            have.teacher, sample, **layers_losses(step)
        ),
    )
    n_windows = len(windows) * factor
    n_steps = _steps(step, n_windows)
    augmented = _megabytes(examples) * factor if factor > 1 else 0.0
    disk = _megabytes(windows.table) * factor + augmented
    return PlannedStep(LAYERS, len(examples) * factor, n_windows, n_steps, n_steps * seconds, disk)


def _plan_answers(have: Ingredients, reader: Reader, sample: datasets.Dataset, scratch: str) -> PlannedStep:
    step = have.recipe.answers
    assert step is not None
    windows = reader.cut(have.examples, cache_dir=have.recipe.cache_dir)
    began = time.monotonic()
    outputs = CachedTeacher(have.teacher)
    outputs.prepare(sample, reader.cut(sample, cache_dir=scratch), cache_dir=scratch, progress=False)
    teacher_seconds = (time.monotonic() - began) / len(outputs.windows)
    seconds = _seconds_a_step(
        have.recipe,
        step,
        lambda settings: _trainer(reader, settings, scratch).distil_prediction_layer_from(
            have.teacher, sample, **step.losses()
        ),
    )
    n_steps = _steps(step, len(windows))
    said = _megabytes(outputs.table) / len(outputs.windows) * len(windows)
    total = n_steps * seconds + teacher_seconds * len(windows)
    disk = _megabytes(windows.table) + said
    return PlannedStep(ANSWERS, len(have.examples), len(windows), n_steps, total, disk)


def _trainer(reader: Reader, settings: TrainingSettings, scratch: str) -> ReaderTrainer:
    return ReaderTrainer(reader.copy(), None, settings, cache_dir=scratch)


def _steps(step: Training, windows: int) -> int:
    return step.max_steps or step.n_epochs * -(-windows // (step.batch_size * step.gradient_accumulation_steps))


def _seconds_a_step(recipe: Recipe, step: Training, run: Callable[[TrainingSettings], object]) -> float:
    """The time of a longer run less that of a shorter one, over the difference of their steps."""
    settings = step.settings(seed=recipe.seed, precision=recipe.precision, progress=False)
    settings = replace(settings, checkpoint_every=None, log_every=_LONG)
    taken = []
    for n_steps in (_SHORT, _SHORT, _LONG):  # the first one warms up
        began = time.monotonic()
        run(replace(settings, max_steps=n_steps))
        taken.append(time.monotonic() - began)
    return max(0.0, (taken[2] - taken[1]) / (_LONG - _SHORT))


def _megabytes(table: datasets.Dataset) -> float:
    return sum(Path(file["filename"]).stat().st_size for file in table.cache_files) / 1e6
