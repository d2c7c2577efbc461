"""Comparing ways of teaching: the same student by each of them, with equal optimiser steps, one process each.

Everything is in the comparison's directory: `arms/<arm>/seed-<seed>` has the recipe of a student, an ordinary recipe
file, and once it is finished `arm.json`, its record. A finished student is not trained again; an interrupted one
resumes from its last checkpoint.
"""

import functools
import json
import logging
import math
import os
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np
import torch
import yaml

from haystack_distill.data.squad.held_out import without_articles
from haystack_distill.data.squad.load import PathLike, content_hash, load_examples, write_squad
from haystack_distill.data.squad.metrics import require_measurable
from haystack_distill.errors import DataError, DistilError
from haystack_distill.recipes.arm import (
    ARM,
    ARM_FILE,
    JOB_FILE,
    RECIPE_FILE,
    TEACHER,
    TEACHER_INT8,
    TIMED_ARM,
    steps_alone,
)
from haystack_distill.recipes.comparison import Arm, Comparison, students_of
from haystack_distill.recipes.inputs import Inputs, load_questions, load_transfer, ready_stages, steps_of
from haystack_distill.recipes.schema import Recipe, Stage, load_recipe, recipe_from
from haystack_distill.reporting.comparison import require_comparable, write_comparison
from haystack_distill.training.checkpoints import directory_lock
from haystack_distill.training.run_record import FREE_SETTINGS, NOT_RECORDED, differences
from haystack_distill.training.settings import TrainingSettings
from haystack_distill.utils.atomic import write_atomically, write_json
from haystack_distill.utils.devices import resolve_device
from haystack_distill.utils.files import expand_user, require_writable, temporary_directory
from haystack_distill.utils.model_files import read_json_object
from haystack_distill.utils.model_fingerprint import model_fingerprint
from haystack_distill.utils.processor import processor_record

logger = logging.getLogger(__name__)

_ARMS, _GRID, _TIMING, _DATA = "arms", "grid", "timing", "data"  # directories of a comparison
# Of a recipe; teacher and data are compared by their content.
_FREE = ("output_dir", "cache_dir", "device", "teacher", "data", "dev_data")
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_THREADS = "OMP_NUM_THREADS"  # of a process's computing
_STDERR = 2  # its descriptor: stdout is for the table
_OF_A_TEACHER = ("teacher", "dev_data", "windows")  # what decides its figures, of what students have in common
_ON_A_DEVICE = ("precision", "device")  # besides; not of its export
_OF_STEPS = ("teacher", "student", "data", "windows", "precision", "device")  # what decides their seconds, likewise
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
        comparable: By arm what its records must have under this name.
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
        held_out: datasets.Dataset | None = None
        self.fitting: list[str] = []
        self.held_out: list[str] = []
        self.trial_hashes: dict[str, str] = {}
        if any(arm.candidates(comparison.grid) for arm in comparison.arms):
            fitting, held_out = split_by_article(train, comparison.held_out, cache_dir=comparison.cache_dir)
            spread = np.linspace(0, len(held_out) - 1, min(len(held_out), _HELD_OUT_QUESTIONS)).astype(int)
            held_out = held_out.select(spread.tolist())
            self.fitting = [self._written(fitting, "grid-train")]
            self.held_out = [self._written(held_out, "grid-held-out")]
            self.trial_hashes = {"data": content_hash(fitting), "dev_data": content_hash(held_out)}
        self._held_out_examples = held_out
        self.comparable: dict[str, dict[str, Any]] = {}
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
        teacher = ""
        for arm in comparison.arms:
            even = arm.steps(max(len(arm.stages), total or 0))
            candidates = arm.candidates(comparison.grid)
            first, *_ = [  # each is read, and so checked; that its stages can begin, the first one shows
                self._checked(arm, values, even) for values in candidates or [{}]
            ]
            if candidates:  # a stage may have nothing left to train on
                self.recipe(arm.chosen(candidates[0]), comparison.seed, even, self.directory, trial=True)
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
            teacher = teacher or model_fingerprint(inputs.teacher.model)
            self.comparable[arm.name] = {
                "teacher": teacher,
                "student": json.loads(json.dumps(inputs.student_record())),
                **self.hashes,
                "windows": asdict(first.windows),
                "precision": inputs.teacher.precision,
                "device": inputs.teacher.device.type,
                "steps": total,
            }
            steps[arm.name] = arm.steps(total, None if arm.recipe is None else _shares_of(arm, inputs))
        return steps

    def _checked(self, arm: Arm, values: Mapping[str, str], steps: Sequence[int]) -> Recipe:
        """The recipe of an arm with values of the grid."""
        try:
            return self.recipe(arm.chosen(values), self.comparison.seed, steps, self.directory)[1]
        except DistilError as error:
            if not values:
                raise
            given = ", ".join(f"{name}={value}" for name, value in values.items())
            raise type(error)(
                f"{error} (with {given} of the grid; an arm keeps the value of an option that it sets itself)"
            ) from error

    def recipe(
        self, arm: Arm, seed: int, steps: Sequence[int], directory: Path, *, trial: bool = False
    ) -> tuple[dict[str, Any], Recipe]:
        """The recipe of one student; with `trial`, one that is trained and measured for a choice."""
        data, dev_data = (self.fitting, self.held_out) if trial else (self.data, self.dev_data)
        content, recipe = self.comparison.recipe(arm, seed, steps, directory, data, dev_data)
        if trial and any(stage.data or stage.sources or stage.transfer for stage in recipe.stages):
            content["stages"] = [
                self._without_held_out(arm.name, given, stage, seed)
                for given, stage in zip(content["stages"], recipe.stages, strict=True)
            ]
            recipe = recipe_from(content, f"arm {arm.name}")
        return content, recipe

    def _without_held_out(self, arm: str, given: dict[str, Any], stage: Stage, seed: int) -> dict[str, Any]:
        """A stage of a recipe file whose own questions are without the held-out articles.

        Questions that are drawn from a pool are in the file of a transfer set.
        """
        place, cache = f"arm {arm}: stage {stage.name}", self.comparison.cache_dir
        given = dict(given)
        if stage.data is not None:
            given["data"] = self._kept(load_questions(stage.data, "train", cache), f"{place}: data") or given["data"]
        if stage.sources is not None:
            given["sources"] = [
                {
                    **source,
                    "data": self._kept(load_questions(one.data, "train", cache), f"{place}: sources") or one.data,
                }
                for source, one in zip(given["sources"], stage.sources, strict=True)
            ]
        if stage.transfer is not None:
            kept = self._kept(load_transfer(stage.transfer, seed, cache), f"{place}: transfer")
            if kept is not None:
                given["transfer"] = {"data": kept, "proportion": str(stage.transfer.proportion)}
        return given

    def _kept(self, examples: datasets.Dataset, place: str) -> list[str] | None:
        """The file of examples without the held-out articles; None where they are about others alone."""
        assert self._held_out_examples is not None
        try:
            kept = without_articles(examples, self._held_out_examples, cache_dir=self.comparison.cache_dir)
        except DistilError as error:
            raise DistilError(
                f"{place}: all of it is about the articles that values of the grid are chosen on; give other data, or "
                "leave the grid out"
            ) from error
        return None if kept is examples else [self._written(kept, "grid-own")]


class _Runner:
    def __init__(self, comparison: Comparison, output: Path, progress: bool) -> None:
        self.comparison = comparison
        self.output = output
        self.progress = progress
        self.session = secrets.token_hex(8)
        self.processes = Processes()
        self.beside = 1  # how many of them may be at work at the same time
        self.checked: set[Path] = set()  # directories of finished students that are those asked for
        self.failed: list[str] = []
        self.notes: list[str] = []

    def run(self) -> ComparisonResult:
        comparison = self.comparison
        self.prepared = _Prepared(comparison, self.output / _DATA)
        self._check_finished()
        teachers = self._teachers()
        trials = [(arm, values) for arm in comparison.arms for values in arm.candidates(comparison.grid)]
        tried = self._at_once(self._tried, trials, _unfinished(self._trial(*trial) for trial in trials))
        chosen = {
            arm.name: self._choose(
                arm,
                [(values, found) for (one, values), found in zip(trials, tried, strict=True) if one is arm],
            )
            for arm in comparison.arms
        }
        students = [
            (*choice, seed) for arm, seed in students_of(comparison) if (choice := chosen[arm.name]) is not None
        ]
        left = _unfinished(self._directory(arm, seed) for arm, _, seed in students)
        self._at_once(lambda one: self._student(*one), students, left)
        records = self._finished()
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

    def _at_once(self, work: Callable[[_Item], _Result], items: Sequence[_Item], left: int) -> list[_Result]:
        """The results of `work` for all items, several at once; after an error those at work are stopped.

        Args:
            work: Is called in a thread of its own, unless one after the other is asked for or left.
            items: What it is called with.
            left: How many of them are not done yet: no more share the processor.
        """
        self.beside = max(1, min(self.comparison.parallel, left))
        try:
            if self.beside == 1:
                return [work(item) for item in items]
            with ThreadPoolExecutor(self.beside) as pool:
                futures = [pool.submit(work, item) for item in items]
                try:
                    wait(futures, return_when=FIRST_EXCEPTION)
                    for future in futures:
                        if future.done():
                            future.result()
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    self.processes.stop()
                    raise
                return [future.result() for future in futures]
        finally:
            self.beside = 1

    def _finished(self) -> list[dict[str, Any]]:
        """The records of all finished students of the directory."""
        paths = sorted(self.output.glob(f"{_ARMS}/*/seed-*/{ARM_FILE}"))
        return [record for record in map(_read, paths) if record is not None]

    def _check_finished(self) -> None:
        """Check that finished students are those that are asked for, and fit the others, before any is trained."""
        comparison = self.comparison
        for arm in comparison.arms:
            candidates = arm.candidates(comparison.grid)
            for values in candidates:
                self._known(arm.chosen(values), comparison.seed, self._trial(arm, values), trial=True)
            for seed in comparison.seeds:
                directory = self._directory(arm, seed)
                if not candidates:
                    self._known(arm, seed, directory)
                elif (done := _read(directory / ARM_FILE)) is not None:
                    chosen = (done.get("choice") or {}).get("chosen", {})
                    if chosen not in candidates:
                        raise DistilError(
                            f"arm {arm.name}: {directory} was finished with {_slug(chosen) or 'no grid'}, which is "
                            "not in the grid of this call; remove it, or choose another output_dir"
                        )
        planned = [
            {"name": f"arm {name} of this call", "comparable": comparable}
            for name, comparable in self.prepared.comparable.items()
        ]
        require_comparable([*planned, *self._finished()], [])

    # --- one student ---------------------------------------------------------------------------------------------

    def _student(self, arm: Arm, choice: dict[str, Any], seed: int) -> dict[str, Any] | None:
        directory = self._directory(arm, seed)
        return self._trained(arm, seed, directory, {"choice": choice}, keep=self.comparison.keep_readers)

    def _directory(self, arm: Arm, seed: int) -> Path:
        return self.output / _ARMS / arm.directory / f"seed-{seed}"

    def _trial(self, arm: Arm, values: Mapping[str, str]) -> Path:
        """The directory of a candidate, wherever in the grid it stands."""
        return self.output / _GRID / arm.directory / _slug(values)

    def _tried(self, trial: tuple[Arm, dict[str, str]]) -> dict[str, Any] | None:
        """The record of a candidate."""
        arm, values = trial
        return self._trained(arm.chosen(values), self.comparison.seed, self._trial(*trial), {}, trial=True)

    def _choose(
        self, arm: Arm, candidates: Sequence[tuple[dict[str, str], dict[str, Any] | None]]
    ) -> tuple[Arm, dict[str, Any]] | None:
        """The arm with the values of the grid that were best on held-out questions, and what was tried.

        None where there are candidates and all have failed.
        """
        if not candidates:
            return arm, {}
        tried = []
        for values, record in candidates:
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
        done = self._known(arm, seed, directory, trial=trial)
        if done is not None:
            return done
        content, _ = self.prepared.recipe(arm, seed, self.prepared.steps[arm.name], directory, trial=trial)
        _write_recipe(directory, content)
        return self._run(directory, {"kind": ARM, "name": arm.name, "seed": seed, "keep_reader": keep, **more})

    def _known(self, arm: Arm, seed: int, directory: Path, *, trial: bool = False) -> dict[str, Any] | None:
        """The record of a finished student, checked; None where it is not finished."""
        done = _read(directory / ARM_FILE)
        if done is not None and directory not in self.checked:
            self.checked.add(directory)
            _, recipe = self.prepared.recipe(arm, seed, self.prepared.steps[arm.name], directory, trial=trial)
            expected = self.prepared.comparable[arm.name] | (self.prepared.trial_hashes if trial else {})
            _require_same_arm(arm.name, directory, done, recipe, expected)
        return done

    def _run(self, directory: Path, job: dict[str, Any]) -> dict[str, Any] | None:
        """The record of a job that is done in a process of its own; None where it failed."""
        alone = self.beside == 1
        call = {"session": self.session, "progress": self.progress and alone, "alone": alone}
        write_json(directory / JOB_FILE, {**job, **call})
        what = f"{job['name']}, seed {job['seed']}" if job["kind"] == ARM else str(job["name"])
        logger.info("%s: %s", what, directory)
        code = run_in_own_process(directory, self.processes, None if alone else _shared_among(self.beside))
        record = _read(directory / ARM_FILE)
        if code or record is None:
            logger.error("%s failed with exit code %s; the others are not affected", what, code)
            self.failed.append(what)
            return None
        return record

    # --- seconds ---------------------------------------------------------------------------------------------------

    def _timing(self, arms: dict[str, Arm]) -> dict[str, float] | None:
        """The seconds of each arm's steps, from a run of some of them, all arms one after the other; None without it.

        What an earlier call has timed counts only if it timed all of these arms as they are now, on such a machine.
        """
        total = self.comparison.time_steps
        if total is None:
            return None
        folders = {name: self.output / _TIMING / arm.directory for name, arm in arms.items()}
        recipes = {}
        for name, arm in arms.items():
            shares = [steps / sum(self.prepared.steps[name]) for steps in self.prepared.steps[name]]
            steps = arm.steps(max(total, len(shares)), shares)
            recipes[name] = self.prepared.recipe(arm, self.comparison.seed, steps, folders[name])
        records = {name: _read(folder / ARM_FILE) for name, folder in folders.items()}
        sessions = {record["session"] if record else None for record in records.values()}
        if len(sessions) > 1 or not all(
            record is not None and self._is_timing_of(record, recipes[name][1], self.prepared.comparable[name])
            for name, record in records.items()
        ):
            for name in arms:
                shutil.rmtree(folders[name], ignore_errors=True)
                _write_recipe(folders[name], recipes[name][0])
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

    def _is_timing_of(self, record: dict[str, Any], recipe: Recipe, comparable: dict[str, Any]) -> bool:
        """Whether a timing run is of these stages with so many steps, on a machine like this one."""
        if not {"recipe", "comparable", "processor"} <= record.keys():  # of an earlier version
            return False
        now = json.loads(json.dumps(steps_alone(recipe).as_dict()))
        return (
            _decisive(record["recipe"]) == _decisive(now)
            and all(record["comparable"][name] == comparable[name] for name in _OF_STEPS)
            and record["processor"] == processor_record(resolve_device(self.comparison.device))
        )

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
        expected = next(iter(self.prepared.comparable.values()))
        decisive = _OF_A_TEACHER if kind == TEACHER_INT8 else (*_OF_A_TEACHER, *_ON_A_DEVICE)
        if done is not None and all(done["comparable"].get(name) == expected[name] for name in decisive):
            return done
        (directory / ARM_FILE).unlink(missing_ok=True)
        return self._run(directory, job)


def _write_recipe(directory: Path, content: dict[str, Any]) -> None:
    """Write the recipe of a student as a recipe file."""
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    write_atomically(directory / RECIPE_FILE, lambda aside: aside.write_text(text, encoding="utf-8"))


class Processes:
    """Processes that are at work, so that another thread can stop all of them; after that, none begins."""

    def __init__(self) -> None:
        self._at_work: set[subprocess.Popen[bytes]] = set()
        self._change = threading.Lock()
        self._stopped = False

    def run(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
        """Run a command, its output on stderr, and return its exit code.

        Raises:
            DistilError: All were stopped before it began.
        """
        with self._change:
            if self._stopped:
                raise DistilError("stopped before it began")
            process = subprocess.Popen(command, stdout=_STDERR, env=environment)
            self._at_work.add(process)
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            self._at_work.discard(process)

    def stop(self) -> None:
        """Stop those that are at work, and let none begin."""
        with self._change:
            self._stopped = True
            for process in self._at_work.copy():
                process.terminate()


def run_in_own_process(directory: Path, processes: Processes, environment: Mapping[str, str] | None = None) -> int:
    """Do the job in a directory in a process of its own; returns its exit code.

    Args:
        directory: The directory.
        processes: What runs it.
        environment: Its environment variables; None for those of this process.
    """
    return processes.run([sys.executable, "-m", "haystack_distill.recipes.arm", str(directory)], environment)


def _unfinished(directories: Iterable[Path]) -> int:
    return sum(not (directory / ARM_FILE).exists() for directory in directories)


def _shared_among(processes: int) -> dict[str, str]:
    """The environment of each of so many processes that share the processor."""
    threads = str(max(1, torch.get_num_threads() // processes))
    return {_THREADS: threads, **os.environ}


def split_by_article(
    examples: datasets.Dataset, share: float, *, cache_dir: PathLike | None = None
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Divide questions by article, so that no text is on both sides; by context where there are no titles.

    The articles are drawn at random, always alike for the same data, until they have the share of the questions.

    Args:
        examples: Rows as `data.squad.load.load_examples` returns them.
        share: The share of the questions that is held out, at least; of several articles, one is never held out.
        cache_dir: See `utils.cache.cache_directory`.

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
    load = functools.partial(load_examples, cache_dir=cache_dir)
    return load(examples.select(rest)), load(examples.select(chosen))


def _shares_of(arm: Arm, inputs: Inputs) -> list[float]:
    """The shares of the stages of a recipe file: by the optimiser steps that each has there."""
    assert arm.recipe is not None
    steps = []
    for stage, own in zip(load_recipe(arm.recipe).stages, inputs.recipe.stages, strict=True):
        if stage.settings.max_steps is not None:
            steps.append(stage.settings.max_steps)
        else:
            windows = inputs.first_reader().cut(inputs.original(own), cache_dir=inputs.recipe.cache_dir)
            steps.append(steps_of(stage, len(windows)))
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
    name: str, directory: Path, done: dict[str, Any], recipe: Recipe, expected: Mapping[str, Any]
) -> None:
    """Check that a finished arm is the one that is asked for.

    Args:
        name: The arm.
        directory: Where it is.
        done: Its record.
        recipe: What is asked for.
        expected: What its record must have under "comparable"; the recipe has its steps and windows.
    """
    changed, unknown = [], []
    for place, then, now in differences(_decisive(done["recipe"]), _decisive(json.loads(json.dumps(recipe.as_dict())))):
        if then == NOT_RECORDED:
            unknown.append(place)
        elif then != now:
            changed.append(f"{place}: then {then!r}, now {now!r}")
    if unknown:
        logger.warning("%s was finished by an earlier version, which did not record %s", directory, ", ".join(unknown))
    before = done["comparable"]
    changed += [
        f"other {what}" for what in ("teacher", "student", "data", "dev_data") if before[what] != expected[what]
    ]
    changed += [
        f"{what}: then {before[what]}, now {expected[what]}" for what in _ON_A_DEVICE if before[what] != expected[what]
    ]
    if changed:
        raise DistilError(
            f"arm {name}: {directory} was finished otherwise ({'; '.join(changed)}); remove it to train it again, or "
            "choose another output_dir"
        )


def _decisive(recipe: dict[str, Any]) -> dict[str, Any]:
    """What decides the student of a recipe, as `Recipe.as_dict` has it; stages by name, parts of a sum by number."""
    stages = {}
    for stage in recipe["stages"]:
        arguments = dict(stage["arguments"])
        if "parts" in arguments:
            arguments["parts"] = {str(number): part for number, part in enumerate(arguments["parts"], start=1)}
        settings = {name: value for name, value in stage["settings"].items() if name not in FREE_SETTINGS}
        stages[stage["name"]] = {**stage, "arguments": arguments, "settings": settings}
    return {name: value for name, value in recipe.items() if name not in _FREE} | {"stages": stages}


def _read(path: Path) -> dict[str, Any] | None:
    return read_json_object(path.parent, path.name, f"remove {path} to repeat the arm")


def _slug(values: Mapping[str, str]) -> str:
    return "-".join(f"{name}={value}" for name, value in values.items())
