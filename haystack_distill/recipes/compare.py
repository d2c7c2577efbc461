"""Comparing ways of teaching: the same student by each of them, with equal optimiser steps, one process each.

Everything is in the comparison's directory: `arms/<arm>/seed-<seed>` has the recipe of a student, an ordinary recipe
file, and once it is finished `arm.json`, its record. A finished student is not trained again; an interrupted one
resumes from its last checkpoint.
"""

import json
import logging
import math
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import yaml

from haystack_distill.data.squad.load import content_hash, load_examples, write_squad
from haystack_distill.data.squad.metrics import require_measurable
from haystack_distill.errors import DataError, DistilError
from haystack_distill.recipes.arm import ARM, ARM_FILE, JOB_FILE, RECIPE_FILE, TEACHER, TEACHER_INT8, TIMED_ARM
from haystack_distill.recipes.comparison import Arm, Comparison, students_of
from haystack_distill.recipes.inputs import Inputs, load_questions, ready_stages
from haystack_distill.recipes.schema import Recipe, load_recipe
from haystack_distill.reporting.comparison import write_comparison
from haystack_distill.training.checkpoints import directory_lock
from haystack_distill.training.run_record import FREE_SETTINGS, NOT_RECORDED, differences
from haystack_distill.training.settings import TrainingSettings
from haystack_distill.utils.atomic import write_atomically, write_json
from haystack_distill.utils.files import expand_user, require_writable, temporary_directory
from haystack_distill.utils.model_files import read_json_object

logger = logging.getLogger(__name__)

_ARMS, _GRID, _TIMING, _DATA = "arms", "grid", "timing", "data"  # directories of a comparison
_FREE = ("output_dir", "cache_dir", "device", "data", "dev_data")  # of a recipe; data is compared by content
_STDERR = 2  # its descriptor: stdout is for the table
_OF_A_TEACHER = ("teacher", "dev_data", "windows", "precision")  # in its job, what decides its figures
_HELD_OUT_QUESTIONS = 1000  # at most, of the held-out articles


@dataclass(frozen=True)
class PlannedArm:
    """What an arm would be.

    Attributes:
        name: Its name.
        stages: The steps of each stage by its name.
        candidates: The values that are tried before it is trained; empty where there is nothing to choose.
    """

    name: str
    stages: dict[str, int]
    candidates: list[dict[str, str]]


@dataclass(frozen=True)
class ComparisonResult:
    """The result of a comparison.

    Attributes:
        directory: The directory with `comparison.html` and `comparison.json`.
        content: The content of `comparison.json`.
        failed: The students that could not be trained, "arm, seed".
    """

    directory: Path
    content: dict[str, Any]
    failed: list[str]


def plan_comparison(comparison: Comparison) -> list[PlannedArm]:
    """What a comparison would train, after all checks; nothing is written.

    Raises:
        DistilError: Something is wrong with an arm.
        DataError: Something is wrong with the data.
    """
    with temporary_directory() as scratch:
        prepared = _Prepared(comparison, Path(scratch))
        return [
            PlannedArm(
                arm.name,
                dict(zip((str(stage["name"]) for stage in arm.stages), prepared.steps[arm.name], strict=True)),
                arm.candidates(comparison.grid),
            )
            for arm in comparison.arms
        ]


def run_comparison(comparison: Comparison, *, progress: bool = True) -> ComparisonResult:
    """Train what is left of a comparison, and write its table, charts and page.

    An arm that fails leaves the others as they are; its messages are on stderr.

    Args:
        comparison: See `recipes.comparison.Comparison`.
        progress: Whether to show bars.

    Raises:
        DistilError: Something is wrong with an arm, finished arms cannot be put into one table, or all failed.
        DataError: Something is wrong with the data.
    """
    output = expand_user(comparison.output_dir)
    require_writable(output)
    with directory_lock(output):
        return _Runner(comparison, output, progress).run()


class _Prepared:
    """A comparison's data, and the steps of its arms, checked.

    Args:
        comparison: The comparison.
        directory: Where a selection of its questions is written.

    Attributes:
        data: The training questions as a recipe names them.
        dev_data: Likewise the dev questions.
        fitting: The questions that candidates of a grid are trained on.
        held_out: The questions that they are measured on.
        steps: The steps of each stage by arm.
    """

    def __init__(self, comparison: Comparison, directory: Path) -> None:
        self.comparison = comparison
        self.directory = directory
        train = load_questions(comparison.data, "train", comparison.cache_dir)
        dev = load_questions(comparison.dev_data, "validation", comparison.cache_dir)
        require_measurable(dev)
        self.data, self.dev_data = comparison.data, comparison.dev_data
        if comparison.questions is not None:
            there = _at_least(train, comparison.questions, "questions")
            order = np.random.default_rng(comparison.seed).permutation(there)
            train = train.select(order[: comparison.questions].tolist())
            self.data = [self._written(train, "train")]
        if comparison.dev_questions is not None:
            _at_least(dev, comparison.dev_questions, "dev_questions")
            dev = dev.select(range(comparison.dev_questions))
            self.dev_data = [self._written(dev, "dev")]
        self.hashes = {"data": content_hash(train), "dev_data": content_hash(dev)}
        self.fitting: list[str] = []
        self.held_out: list[str] = []
        self.trial_hashes: dict[str, str] = {}
        if any(arm.candidates(comparison.grid) for arm in comparison.arms):
            fitting, held_out = split_by_article(train, comparison.held_out)
            spread = np.linspace(0, len(held_out) - 1, min(len(held_out), _HELD_OUT_QUESTIONS)).astype(int)
            held_out = held_out.select(spread.tolist())
            self.fitting = [self._written(fitting, "grid-train")]
            self.held_out = [self._written(held_out, "grid-held-out")]
            self.trial_hashes = {"data": content_hash(fitting), "dev_data": content_hash(held_out)}
        self.steps = self._steps()

    def _written(self, examples: datasets.Dataset, name: str) -> str:
        """The file of a selection of questions, named by its content."""
        path = self.directory / f"{name}-{content_hash(examples)[:12]}.json.gz"
        if not path.exists():
            write_squad(examples, path)
        return str(path)

    def _steps(self) -> dict[str, list[int]]:
        """The steps of each stage by arm, after a check that each stage can begin."""
        comparison = self.comparison
        total = comparison.max_steps
        steps = {}
        for arm in comparison.arms:
            even = arm.steps(max(len(arm.stages), total or 0))
            first, *_ = [  # each is read, and so checked; that its stages can begin, the first one shows
                self.recipe(arm.chosen(values), comparison.seed, even, self.directory)[1]
                for values in arm.candidates(comparison.grid) or [{}]
            ]
            try:
                inputs = Inputs(first)
                student = inputs.first_student()
                if total is None:
                    windows = student.reader().cut(inputs.examples, cache_dir=comparison.cache_dir)
                    total = _steps_of_epochs(comparison, len(windows))
                for _ in ready_stages(inputs, student):
                    pass
            except DistilError as error:
                raise type(error)(f"arm {arm.name}: {error}") from error
            assert total is not None
            steps[arm.name] = arm.steps(total, None if arm.recipe is None else _shares_of(arm, inputs))
        return steps

    def recipe(
        self, arm: Arm, seed: int, steps: Sequence[int], directory: Path, *, trial: bool = False
    ) -> tuple[dict[str, Any], Recipe]:
        """The recipe of one student; with `trial`, one that is trained and measured for a choice."""
        data, dev_data = (self.fitting, self.held_out) if trial else (self.data, self.dev_data)
        return self.comparison.recipe(arm, seed, steps, directory, data, dev_data)


class _Runner:
    def __init__(self, comparison: Comparison, output: Path, progress: bool) -> None:
        self.comparison = comparison
        self.output = output
        self.progress = progress
        self.session = secrets.token_hex(8)
        self.failed: list[str] = []
        self.notes: list[str] = []

    def run(self) -> ComparisonResult:
        comparison = self.comparison
        self.prepared = _Prepared(comparison, self.output / _DATA)
        teachers = self._teachers()
        chosen = {arm.name: self._choose(arm) for arm in comparison.arms}
        for arm, seed in students_of(comparison):
            choice = chosen[arm.name]
            if choice is not None:
                self._student(*choice, seed)
        paths = sorted(self.output.glob(f"{_ARMS}/*/seed-*/{ARM_FILE}"))
        records = [record for record in map(_read, paths) if record is not None]
        if not records:
            raise DistilError("no arm could be trained; the messages of each are above")
        timing = self._timing({name: choice[0] for name, choice in chosen.items() if choice is not None})
        content = write_comparison(
            self.output,
            records,
            teachers,
            timing=timing,
            order=[arm.name for arm in comparison.arms],
            baseline=comparison.compared_with,
            notes=self.notes,
        )
        return ComparisonResult(self.output, content, self.failed)

    # --- one student ---------------------------------------------------------------------------------------------

    def _student(self, arm: Arm, choice: dict[str, Any], seed: int) -> dict[str, Any] | None:
        directory = self.output / _ARMS / arm.directory / f"seed-{seed}"
        return self._trained(arm, seed, directory, {"choice": choice}, keep=self.comparison.keep_readers)

    def _choose(self, arm: Arm) -> tuple[Arm, dict[str, Any]] | None:
        """The arm with the values of the grid that were best on held-out questions, and what was tried."""
        candidates = arm.candidates(self.comparison.grid)
        if not candidates:
            return arm, {}
        tried = []
        for number, values in enumerate(candidates, start=1):
            directory = self.output / _GRID / arm.directory / f"{number}-{_slug(values)}"
            record = self._trained(arm.chosen(values), self.comparison.seed, directory, {}, trial=True)
            if record is not None:
                metrics = record["measurements"]["metrics"]
                tried.append({"values": values, "f1": metrics["f1"], "exact": metrics["exact"]})
        if not tried:
            return None
        best = max(tried, key=lambda one: one["f1"])
        logger.info("%s: chosen %s of %d (held-out F1 %.2f)", arm.name, _slug(best["values"]), len(tried), best["f1"])
        return arm.chosen(best["values"]), {"chosen": best["values"], "tried": tried}

    def _trained(
        self, arm: Arm, seed: int, directory: Path, more: dict[str, Any], *, trial: bool = False, keep: bool = False
    ) -> dict[str, Any] | None:
        """The record of a student, trained unless it was before; None where that failed."""
        steps = self.prepared.steps[arm.name]
        content, recipe = self.prepared.recipe(arm, seed, steps, directory, trial=trial)
        done = _read(directory / ARM_FILE)
        if done is not None:
            hashes = self.prepared.trial_hashes if trial else self.prepared.hashes
            _require_same_arm(arm.name, directory, done, recipe, hashes)
            return done
        _write_recipe(directory, content)
        return self._run(directory, {"kind": ARM, "name": arm.name, "seed": seed, "keep_reader": keep, **more})

    def _run(self, directory: Path, job: dict[str, Any]) -> dict[str, Any] | None:
        """The record of a job that is done in a process of its own; None where it failed."""
        write_json(directory / JOB_FILE, {**job, "session": self.session, "progress": self.progress})
        what = f"{job['name']}, seed {job['seed']}" if job["kind"] == ARM else str(job["name"])
        logger.info("%s: %s", what, directory)
        code = run_in_own_process(directory)
        record = _read(directory / ARM_FILE)
        if code or record is None:
            logger.error("%s failed with exit code %s; the others are not affected", what, code)
            self.failed.append(what)
            return None
        return record

    # --- seconds ---------------------------------------------------------------------------------------------------

    def _timing(self, arms: dict[str, Arm]) -> dict[str, float] | None:
        """The seconds of each arm's steps, from a run of some of them, all arms one after the other; None without it.

        What an earlier call has timed counts only if it timed all of these arms.
        """
        total = self.comparison.time_steps
        if total is None:
            return None
        folders = {name: self.output / _TIMING / arm.directory for name, arm in arms.items()}
        records = {name: _read(folder / ARM_FILE) for name, folder in folders.items()}
        known = {record["session"] if record else None for record in records.values()}
        if (
            None in known
            or len(known) > 1
            or any(sum(_steps_in(one)) != max(total, len(_steps_in(one))) for one in records.values())
        ):
            for name, arm in arms.items():
                shutil.rmtree(folders[name], ignore_errors=True)
                shares = [steps / sum(self.prepared.steps[name]) for steps in self.prepared.steps[name]]
                steps = arm.steps(max(total, len(shares)), shares)
                content, _ = self.prepared.recipe(arm, self.comparison.seed, steps, folders[name])
                _write_recipe(folders[name], content)
                job = {"kind": TIMED_ARM, "name": f"{name}, timed", "keep_reader": False}
                records[name] = self._run(folders[name], job)
        return {
            name: sum(
                stage["seconds"] * steps / stage["steps"]
                for stage, steps in zip(record["stages"], self.prepared.steps[name], strict=True)
            )
            for name, record in records.items()
            if record is not None
        }

    # --- the teacher ---------------------------------------------------------------------------------------------

    def _teachers(self) -> list[dict[str, Any]]:
        """The records of the teacher, and of the teacher in int8 where that is asked for and can be."""
        kinds = [TEACHER]
        if self.comparison.int8:
            missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
            if missing:
                self.notes.append(
                    f"The teacher in int8 was not measured, because {' and '.join(missing)} is not installed "
                    "(pip install haystack-distill[onnx])."
                )
            else:
                kinds.append(TEACHER_INT8)
        found = []
        for kind in kinds:
            record = self._teacher(kind)
            if record is not None:
                found.append(record)
            elif kind == TEACHER:
                raise DistilError("the teacher could not be measured; its message is above")
            else:
                self.failed.remove(kind)
                self.notes.append("The teacher in int8 was not measured, because its export failed (see the log).")
        return found

    def _teacher(self, kind: str) -> dict[str, Any] | None:
        comparison, directory = self.comparison, self.output / kind
        job = {
            "kind": kind,
            "name": kind,
            "teacher": comparison.teacher,
            "dev_data": self.prepared.dev_data,
            "windows": asdict(comparison.windows),
            "precision": comparison.precision,
            "device": comparison.device,
            "cache_dir": comparison.cache_dir,
            "keep_reader": False,
        }
        done = _read(directory / ARM_FILE)
        if done is not None and all(done.get(name) == job[name] for name in _OF_A_TEACHER):
            return done
        (directory / ARM_FILE).unlink(missing_ok=True)
        return self._run(directory, job)


def _write_recipe(directory: Path, content: dict[str, Any]) -> None:
    """Write the recipe of a student as a recipe file."""
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    write_atomically(directory / RECIPE_FILE, lambda aside: aside.write_text(text, encoding="utf-8"))


def _steps_in(record: dict[str, Any] | None) -> list[int]:
    return [stage["steps"] for stage in record["stages"]] if record else []


def run_in_own_process(directory: Path) -> int:
    """Do the job in a directory in a process of its own; returns its exit code."""
    command = [sys.executable, "-m", "haystack_distill.recipes.arm", str(directory)]
    return subprocess.run(command, stdout=_STDERR).returncode


def split_by_article(examples: datasets.Dataset, share: float) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Divide questions by article, so that no text is on both sides; by context where there are no titles.

    The articles are drawn at random, always alike for the same data, until they have the share of the questions.

    Args:
        examples: Rows as `data.squad.load.load_examples` returns them.
        share: The share of the questions that is held out, at least; of several articles, one is never held out.

    Returns:
        The rest, and those of the held-out questions that are labelled.

    Raises:
        DataError: There is one article only, or none of the held-out questions is labelled.
    """
    titles = examples["title"]
    rows: dict[str, list[int]] = {}
    for row, article in enumerate(titles if len(set(titles)) > 1 else examples["context"]):
        rows.setdefault(article, []).append(row)
    names = sorted(rows)
    held: list[int] = []
    for number in np.random.default_rng(0).permutation(len(names))[:-1]:
        if len(held) < share * len(examples):
            held += rows[names[number]]
    labelled = examples["labelled"]
    chosen = sorted(row for row in held if labelled[row])
    if not chosen:
        raise DataError(
            "the training questions cannot be divided by article to choose values of a grid on; give labelled "
            "questions about several texts, or leave the grid out"
        )
    rest = sorted(set(range(len(examples))).difference(held))
    return load_examples(examples.select(rest)), load_examples(examples.select(chosen))


def _shares_of(arm: Arm, inputs: Inputs) -> list[float]:
    """The shares of the stages of a recipe file: by the optimiser steps that each has there."""
    assert arm.recipe is not None
    steps = []
    for stage, own in zip(load_recipe(arm.recipe).stages, inputs.recipe.stages, strict=True):
        settings = stage.settings
        if settings.max_steps is not None:
            steps.append(settings.max_steps)
            continue
        factor = 1 if stage.augment is None else stage.augment.multiplication_factor
        windows = len(inputs.first_reader().cut(inputs.original(own), cache_dir=inputs.recipe.cache_dir)) * factor
        steps.append(settings.n_epochs * -(-windows // (settings.batch_size * settings.gradient_accumulation_steps)))
    return [one / sum(steps) for one in steps]


def _steps_of_epochs(comparison: Comparison, windows: int) -> int:
    """The optimiser steps of the comparison's epochs, in batches of the size that all stages share."""
    sizes = ("batch_size", "gradient_accumulation_steps")
    per_step = math.prod(int(comparison.settings.get(name, getattr(TrainingSettings, name))) for name in sizes)
    return comparison.n_epochs * -(-windows // per_step)


def _at_least(examples: datasets.Dataset, wanted: int, name: str) -> int:
    """The number of examples, after a check that there are as many as wanted."""
    if len(examples) < wanted:
        raise DistilError(f"{name} is {wanted}, but there are only {len(examples)}; lower it, or leave it out")
    return len(examples)


def _require_same_arm(
    name: str, directory: Path, done: dict[str, Any], recipe: Recipe, hashes: Mapping[str, str]
) -> None:
    """Check that a finished arm is the one that is asked for."""
    changed = []
    for place, before, now in differences(
        _decisive(done["recipe"]), _decisive(json.loads(json.dumps(recipe.as_dict())))
    ):
        if before == NOT_RECORDED:
            logger.warning("%s was finished by an earlier version, which did not record %s", directory, place)
        elif before != now:
            changed.append(f"{place}: then {before!r}, now {now!r}")
    changed += [f"other {what}" for what, value in hashes.items() if done["comparable"][what] != value]
    if changed:
        raise DistilError(
            f"arm {name}: {directory} was finished otherwise ({'; '.join(changed)}); remove it to train it again, or "
            "choose another output_dir"
        )


def _decisive(recipe: dict[str, Any]) -> dict[str, Any]:
    """What decides the student of a recipe, as `Recipe.as_dict` has it; the stages by their names."""
    stages = {
        stage["name"]: {**stage, "settings": {k: v for k, v in stage["settings"].items() if k not in FREE_SETTINGS}}
        for stage in recipe["stages"]
    }
    return {name: value for name, value in recipe.items() if name not in _FREE} | {"stages": stages}


def _read(path: Path) -> dict[str, Any] | None:
    return read_json_object(path.parent, path.name, f"remove {path} to repeat the arm")


def _slug(values: Mapping[str, str]) -> str:
    return "-".join(f"{name}={value}" for name, value in values.items())
