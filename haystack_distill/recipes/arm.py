"""One student or teacher of a comparison, in a process of its own, so that its peak of memory is its own.

    python -m haystack_distill.recipes.arm DIRECTORY

`DIRECTORY/job.json` holds what is to be done; `DIRECTORY/arm.json`, which is written last, what came out.
"""

import contextlib
import json
import logging
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from haystack_distill.data.squad.load import content_hash
from haystack_distill.data.window_settings import WindowSettings
from haystack_distill.evaluation.measurements import Measurements, Role, measure_reader
from haystack_distill.models.embedded_teacher import named_reader, named_teacher
from haystack_distill.models.reader import Reader
from haystack_distill.recipes.inputs import load_questions
from haystack_distill.recipes.runner import RESULT_FILE, run_recipe
from haystack_distill.recipes.schema import READER, Recipe, load_recipe
from haystack_distill.training.run_record import versions
from haystack_distill.utils.atomic import write_json
from haystack_distill.utils.console import LogHandler, errors_as_messages, stop_cleanly
from haystack_distill.utils.devices import resolve_device
from haystack_distill.utils.files import temporary_directory
from haystack_distill.utils.memory import peak_memory
from haystack_distill.utils.model_files import RUN_FILE
from haystack_distill.utils.model_fingerprint import model_fingerprint
from haystack_distill.utils.processor import processor_record

JOB_FILE = "job.json"
ARM_FILE = "arm.json"
RECIPE_FILE = "recipe.yaml"
ARM, TIMED_ARM = "arm", "timed-arm"  # kinds of jobs: a student, and some of its steps, which are only timed
TEACHER, TEACHER_INT8 = "teacher", "teacher-int8"

_INTERRUPTED = 130  # the exit code of what was stopped by a signal such as Ctrl-C
_OF_THE_CALL = ("progress", "keep_reader", "alone")  # of a job: not for its record
_TRAINED_SECONDS = "train_runtime"  # in the last line of a run's log: seconds of its steps, evaluations included


def run_job(directory: Path) -> None:
    """Do what `job.json` in a directory has, and write `arm.json` there.

    Args:
        directory: The directory of the student or teacher.

    Raises:
        DistilError: Something is wrong with the recipe, or the teacher cannot be exported.
        DataError: Something is wrong with the data.
    """
    job = json.loads((directory / JOB_FILE).read_text(encoding="utf-8"))
    keep_reader = job["keep_reader"]
    record = _student(directory, job) if job["kind"] in (ARM, TIMED_ARM) else _teacher(job)
    job = {name: value for name, value in job.items() if name not in _OF_THE_CALL}
    write_json(directory / ARM_FILE, {**job, **record, "versions": versions()})
    if not keep_reader:
        shutil.rmtree(directory / READER, ignore_errors=True)
    elif not (directory / READER / "model.safetensors").exists():
        return  # adapters alone: their base may be what an earlier stage made
    for stage in record.get("stages", ()):  # only now: until then, a resumed run needs them
        shutil.rmtree(directory / stage["directory"], ignore_errors=True)


def _student(directory: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Train and measure a student."""
    recipe = load_recipe(directory / RECIPE_FILE)
    if job["kind"] == TIMED_ARM:
        recipe = steps_alone(recipe)
    fresh = not any((directory / recipe.directory_of(stage)).exists() for stage in recipe.stages)
    result = run_recipe(recipe, progress=job["progress"], measure=False)
    device = resolve_device(recipe.device)
    memory = _peak_megabytes(device)
    record = json.loads((directory / RESULT_FILE).read_text(encoding="utf-8"))["record"]
    reading = {"window_settings": recipe.windows, "device": device, "precision": recipe.precision}
    stages = [_stage_record(directory, name) for name in result.steps]
    train = load_questions(recipe.data, "train", recipe.cache_dir)
    comparable = {
        "teacher": record["teacher"],
        "student": record["student"],
        "data": content_hash(train),
        "windows": record["windows"],
        "precision": record["precision"],
        "device": device.type,
    }
    if job["kind"] == TIMED_ARM:
        made = {"comparable": comparable, "recipe": recipe.as_dict(), "processor": processor_record(device)}
        return {**made, "stages": stages}
    reader = Reader.load(directory / READER, **reading)  # type: ignore[arg-type]
    measured, dev_hash = _measured(reader, recipe.dev_data or [], job, recipe.cache_dir, "distilled")
    steps = sum(result.steps.values())
    trained = [stage["trained"] for stage in stages]
    return {
        "comparable": {**comparable, "dev_data": dev_hash, "steps": steps},
        "questions": len(train),
        "recipe": recipe.as_dict(),
        "stages": stages,
        "steps": steps,
        "seconds": sum(stage["seconds"] for stage in stages),
        # A resumed run has lost the seconds before it was stopped; beside others, it has theirs too.
        "timed": fresh and job.get("alone", True),
        "memory_megabytes": memory,
        "trained": max(trained) if None not in trained else None,
        **measured,
    }


def steps_alone(recipe: Recipe) -> Recipe:
    """A recipe without evaluations and checkpoints, so that the seconds of its steps can be scaled to more steps.

    Only an adaptation that depends on evaluations keeps those.
    """
    stages = []
    for stage in recipe.stages:
        settings = replace(stage.settings.unmeasured(), checkpoint_every=None)
        if stage.adaptation.needs_evaluations:
            own = stage.settings
            settings = replace(settings, evaluate_every=own.evaluate_every, best_by=own.best_by)
        stages.append(replace(stage, settings=settings))
    return replace(recipe, stages=stages)


def _stage_record(directory: Path, name: str) -> dict[str, Any]:
    """What a finished stage did, and how many weights it trained."""
    run = json.loads((directory / name / RUN_FILE).read_text(encoding="utf-8"))
    seconds = [line[_TRAINED_SECONDS] for line in run["history"] if _TRAINED_SECONDS in line]
    return {
        "directory": name,
        "method": run["method"],
        "arguments": run["arguments"],
        "adaptation": run["adaptation"],
        "settings": run["settings"],
        "steps": run["steps"],
        "seconds": sum(seconds) if seconds else run["seconds"],
        "trained": run.get("trained"),  # a stage that an earlier version trained has no number
        "history": run["history"],
    }


def _teacher(job: dict[str, Any]) -> dict[str, Any]:
    """Measure the teacher as it is, or exported to ONNX in int8."""
    windows = WindowSettings(**job["windows"])
    device = resolve_device(job["device"])
    reading: dict[str, Any] = {"window_settings": windows, "device": device, "precision": job["precision"]}
    reader = named_teacher(job["teacher"], **reading)
    comparable = {"teacher": model_fingerprint(reader.model), "windows": asdict(windows)}
    with contextlib.ExitStack() as held:
        precision = reader.precision
        if job["kind"] == TEACHER_INT8:
            from haystack_distill.export.exporting import export_reader

            scratch = held.enter_context(temporary_directory())
            own = reader.window_settings
            export_reader(named_reader(job["teacher"], window_settings=own, device="cpu"), scratch)
            reader, precision = Reader.load(scratch, backend="onnx-int8", window_settings=own), "int8"
        measured, dev_hash = _measured(reader, job["dev_data"], job, job["cache_dir"], "teacher")
    comparable |= {"dev_data": dev_hash, "precision": precision, "device": reader.device.type}
    return {"comparable": comparable, "timed": True, **measured}


def _measured(
    reader: Reader, dev_data: list[str], job: dict[str, Any], cache_dir: str | None, role: Role
) -> tuple[dict[str, Any], str]:
    """A reader's scores as a record has them, and the hash of the questions."""
    dev = load_questions(dev_data, "validation", cache_dir)
    found: Measurements = measure_reader(
        reader, dev, job["name"], role=role, cache_dir=cache_dir, progress=job["progress"]
    )
    return {
        "measurements": found.to_json(),
        "processor": processor_record(reader.device),
    }, found.data


def _peak_megabytes(device: torch.device) -> dict[str, float | None]:
    """The peak of memory of this process in 10^6 bytes: resident, and on the GPU where it computed on one."""
    resident = peak_memory()
    gpu = torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None
    return {"resident": None if resident is None else resident / 1e6, "gpu": gpu}


def main() -> None:
    """Run the job in the directory that is the command's argument."""
    logger = logging.getLogger("haystack_distill")
    logger.addHandler(LogHandler())
    logger.setLevel(logging.INFO)
    stop_cleanly()
    try:
        with errors_as_messages():
            run_job(Path(sys.argv[1]))
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)  # the comparison has the message


if __name__ == "__main__":
    main()
