"""What a training step of each method costs beside the bare forward and backward passes that it needs.

    python benchmarks/step_cost.py --teacher MODEL [--layers 3] [--methods a,b] [--batches 8] [--rounds 5]

Bare is a plain loop on the same batches: the student's forward and backward pass with its own kernel and a cross
entropy, and, where the method reads more than logits, the teacher's forward pass. A step of a method is the trainer's
own `compute_loss` and backward pass. Both without the optimiser, alternating; the medians over the rounds are compared.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from haystack_distill import Reader, ReaderTrainer, TrainingSettings, WindowSettings, students
from haystack_distill.data.sample import sample_path
from haystack_distill.training.loop import _LoopTrainer
from haystack_distill.training.methods import METHODS
from haystack_distill.utils.devices import autocast
from haystack_distill.utils.model_inputs import model_inputs

_NEEDS_CORPUS = ("masked_language_model",)


class _Measured(Exception):
    """Ends the run of a trainer once its steps have been timed."""


def bare_seconds(student: Reader, teacher: Reader | None, batches: list[dict[str, torch.Tensor]]) -> float:
    """The time of the bare passes over some batches."""
    began = time.perf_counter()
    for batch in batches:
        with autocast(student.device, student.precision):
            if teacher is not None:
                with torch.no_grad():
                    teacher.model(**model_inputs(batch, token_types="token_type_ids" in batch))
            outputs = student.model(**model_inputs(batch, token_types="token_type_ids" in batch))
            places = torch.zeros(len(batch["input_ids"]), dtype=torch.long)
            loss = cross_entropy(outputs.start_logits.float(), places) + cross_entropy(
                outputs.end_logits.float(), places
            )
        loss.backward()
        student.model.zero_grad()
    return time.perf_counter() - began


def ratio_of(name: str, teacher: Reader, layers: int, data: object, n_batches: int, rounds: int, scratch: Path) -> dict:
    """A method's seconds per batch, those of the bare passes, and their ratio."""
    student = students.from_teacher(teacher, layers=layers)
    options: dict[str, object] = {"use_labels": False} if name == "hard_targets" else {}  # all questions have labels
    for option, needed in METHODS[name].needs_run_of.items():
        settings = TrainingSettings(max_steps=1, progress=False, checkpoint_every=None, overwrite=True)
        ReaderTrainer(student.copy(), scratch / needed, settings).distil(teacher, data, needed)
        options[option] = str(scratch / needed)
    method = METHODS[name](**options)
    request = method.objective(student.model.config, teacher.model.config).teacher_request
    found: dict[str, float] = {}
    batches: list[dict[str, torch.Tensor]] = []
    compute = _LoopTrainer.compute_loss

    def timed(self: _LoopTrainer, model, inputs, *arguments, **keywords):  # type: ignore[no-untyped-def]
        batches.append(inputs)
        if len(batches) < n_batches:
            return compute(self, model, inputs, *arguments, **keywords)
        times: dict[str, list[float]] = {"method": [], "bare": []}
        live = teacher if request.beyond_logits else None
        for number in range(rounds + 1):
            began = time.perf_counter()
            for batch in batches:
                compute(self, model, batch).backward()
                model.zero_grad()
            taken = time.perf_counter() - began, bare_seconds(student, live, batches)
            if number:  # the first round warms up
                times["method"].append(taken[0])
                times["bare"].append(taken[1])
        for kind, values in times.items():
            found[kind] = statistics.median(values) / n_batches
        raise _Measured

    _LoopTrainer.compute_loss = timed  # type: ignore[method-assign]
    try:
        settings = TrainingSettings(max_steps=n_batches + 1, progress=False, checkpoint_every=None)
        ReaderTrainer(student, None, settings).distil(teacher if request else None, data, method)
    except _Measured:
        pass
    finally:
        _LoopTrainer.compute_loss = compute  # type: ignore[method-assign]
    return {"method": name, **found, "ratio": found["method"] / found["bare"], "teacher_in_step": request.beyond_logits}


def main() -> None:
    """Print a line per method, and write them to a file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--methods", default=",".join(name for name in METHODS if name not in _NEEDS_CORPUS))
    parser.add_argument("--data", default=str(sample_path("train")))
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    teacher = Reader.load(given.teacher, window_settings=WindowSettings(256, 128, 64))
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in given.methods.split(","):
            line = ratio_of(name, teacher, given.layers, given.data, given.batches, given.rounds, Path(scratch))
            lines.append(line)
            print(
                f"{name:24} {line['method'] * 1e3:8.1f} ms a batch, bare {line['bare'] * 1e3:8.1f} ms: "
                f"{line['ratio']:.3f}",
                flush=True,
            )
    if given.output:
        given.output.write_text(json.dumps(lines, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
