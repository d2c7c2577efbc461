"""Training and the teacher's pass against bare PyTorch loops on the same batches.

    python benchmarks/gpu.py --teacher MODEL [--layers 3] [--data TRAIN] [--batch-size 16] [--steps 30] [--rounds 3]
        [--device auto] [--precision auto] [--torch-compile] [--json FILE]

A bare loop is what somebody would write who wants nothing but the same gradients: batches that are collated in memory
beforehand, the copy to the device, forward and backward passes under autocast, losses of `torch.nn.functional`,
gradient clipping and fused AdamW. Ours is a whole run of `ReaderTrainer`, timed from a step after its first ones to its
last. Both take turns, and the fastest of the rounds counts. It is made for a GPU; on a processor take few steps.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, mse_loss, softmax
from transformers import TrainerCallback

from haystack_distill import Reader, ReaderTrainer, TrainingSettings, WindowSettings, students
from haystack_distill.data.sample import sample_path
from haystack_distill.data.squad.load import load_examples
from haystack_distill.data.windows import Windows
from haystack_distill.objectives import IntermediateLayers, Labels, PredictionLayer
from haystack_distill.teachers.cached import CachedTeacher
from haystack_distill.utils.devices import autocast, length_multiple
from haystack_distill.utils.layer_mapping import uniform_layers
from haystack_distill.utils.model_inputs import model_inputs

_WARM_UP = 3  # steps
_TEMPERATURE = 2.0
_LAYERS = IntermediateLayers(attention_loss_weight=0.0)
METHODS: dict[str, Any] = {
    "labels": Labels(),
    "answers": PredictionLayer(temperature=_TEMPERATURE, distillation_loss_weight=1.0),
    "layers": _LAYERS,
    "joint": _LAYERS + PredictionLayer(temperature=_TEMPERATURE, distillation_loss_weight=1.0),
}


class Clock(TrainerCallback):
    """Takes the time from one step of a run to another."""

    def __init__(self, first: int, last: int, synchronise: Callable[[], object]) -> None:
        self.first, self.last, self.synchronise = first, last, synchronise
        self.seconds = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step in (self.first, self.last):
            self.synchronise()
            self.seconds = time.perf_counter() - self.seconds


def batches_of(windows: Windows, teacher: CachedTeacher, settings: TrainingSettings, multiple: int) -> list[dict]:
    """The batches of a run in their order, with the teacher's logits."""
    order = windows.batches(settings.batch_size, seed=settings.seed)
    found: list[dict] = []
    assert settings.max_steps is not None
    while len(found) < settings.max_steps:
        order.start_epoch(len(found) // order.steps)
        for rows in order:
            batch = windows.collate(windows.__getitems__(rows), multiple)
            found.append(batch | teacher.cached(batch))
    return found[: settings.max_steps]


def bare_loss(method: str, student: Any, teacher: Any, batch: dict[str, Tensor], inputs: dict[str, Tensor]) -> Tensor:
    """The loss of a method, as short as it can be written."""
    deep = method in ("layers", "joint")
    outputs = student(**inputs, output_hidden_states=deep)
    mask = batch["attention_mask"].bool()
    loss = outputs.start_logits.new_zeros((), dtype=torch.float32)
    for name in ("start", "end"):
        logits = outputs[f"{name}_logits"].float().masked_fill(~mask, -1e4)
        if method == "labels":
            loss = loss + cross_entropy(logits, batch[f"{name}_positions"].clamp(0), reduction="mean") / 2
        if method in ("answers", "joint"):
            target = softmax(batch[f"teacher_{name}_logits"] / _TEMPERATURE, dim=-1)
            found = kl_div(log_softmax(logits / _TEMPERATURE, dim=-1), target, reduction="batchmean")
            loss = loss + _TEMPERATURE**2 * found / 2
    if deep:
        with torch.no_grad():
            states = teacher(**inputs, output_hidden_states=True).hidden_states
        own = outputs.hidden_states
        mapping = [0, *uniform_layers(len(own) - 1, len(states) - 1)]
        for mine, layer in zip(own, mapping, strict=True):
            loss = loss + mse_loss(mine[mask].float(), states[layer][mask].float())
    return loss


def bare_seconds(
    method: str, student: Reader, teacher: Reader, batches: list[dict], synchronise: Callable[[], object]
) -> float:
    """Seconds of the steps of a bare loop after those that warm up."""
    model = student.copy().model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    device = student.device
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.type in ("cpu", "cuda"))
    pinned = [{name: t.pin_memory() if device.type == "cuda" else t for name, t in one.items()} for one in batches]
    began = 0.0
    for number, cpu_batch in enumerate(pinned):
        if number == _WARM_UP:
            synchronise()
            began = time.perf_counter()
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in cpu_batch.items()}
        with autocast(device, student.precision):
            loss = bare_loss(method, model, teacher.model, batch, model_inputs(batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    synchronise()
    return time.perf_counter() - began


def our_seconds(
    method: str,
    student: Reader,
    teacher: Reader,
    data: Any,
    settings: TrainingSettings,
    cache: Path,
    synchronise: Callable[[], object],
) -> float:
    """Seconds of the same steps of a run."""
    assert settings.max_steps is not None
    clock = Clock(_WARM_UP, settings.max_steps, synchronise)
    trainer = ReaderTrainer(student.copy(), None, settings, cache_dir=cache)
    trainer.distil(None if method == "labels" else teacher, data, METHODS[method], callbacks=[clock])
    return clock.seconds


def teacher_seconds(
    teacher: Reader, data: Any, windows: Windows, synchronise: Callable[[], object]
) -> tuple[float, float]:
    """Seconds of the teacher's pass for the cache, its writing included, and of the bare forward passes."""
    batches = [model_inputs(batch) for batch in teacher._batches(windows, torch.arange(len(windows)).numpy())]
    with tempfile.TemporaryDirectory() as empty:
        windows_there = teacher.cut(data, cache_dir=empty)
        cached = CachedTeacher(teacher)
        synchronise()
        began = time.perf_counter()
        cached.prepare(data, windows_there, cache_dir=empty, progress=False)
        ours = time.perf_counter() - began
    began = time.perf_counter()
    for inputs in batches:
        with torch.inference_mode(), autocast(teacher.device, teacher.precision):
            outputs = teacher.model(**{name: tensor.to(teacher.device) for name, tensor in inputs.items()})
            outputs.start_logits.float().cpu(), outputs.end_logits.float().cpu()
    return ours, time.perf_counter() - began


def main() -> None:
    """Print a line per method, and write them to a file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--data", default=str(sample_path("train")))
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--torch-compile", action="store_true", help="compile the layers in our training only")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    running = {"device": given.device, "precision": given.precision, "window_settings": WindowSettings(256, 128, 64)}
    teacher = Reader.load(given.teacher, **running)
    student = students.from_teacher(teacher, layers=given.layers)
    synchronise = torch.cuda.synchronize if teacher.device.type == "cuda" else lambda: None
    settings = TrainingSettings(
        max_steps=_WARM_UP + given.steps,
        batch_size=given.batch_size,
        precision=given.precision,
        torch_compile=given.torch_compile,
        progress=False,
        checkpoint_every=None,
    )
    lines = []

    def note(name: str, n_windows: int, ours: float, bare: float) -> None:
        line = {"what": name, "ours": n_windows / ours, "bare": n_windows / bare, "of_bare": bare / ours}
        lines.append(line)
        print(f"{name:10} {line['ours']:9.1f} windows/s, bare {line['bare']:9.1f}: {line['of_bare']:.3f}", flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(scratch)
        loaded = load_examples(given.data, cache_dir=cache)
        data = loaded.select(range(min(given.questions, len(loaded))))
        windows = teacher.cut(data, cache_dir=cache)
        passes = [teacher_seconds(teacher, data, windows, synchronise) for _ in range(given.rounds + 1)][1:]
        note("teacher", len(windows), min(ours for ours, _ in passes), min(bare for _, bare in passes))
        cached = CachedTeacher(teacher)
        cached.prepare(data, windows, cache_dir=cache, progress=False)
        batches = batches_of(windows, cached, settings, length_multiple(teacher.precision))
        n_windows = sum(len(batch["window"]) for batch in batches[_WARM_UP:])
        for method in given.methods.split(","):
            times = [
                (
                    our_seconds(method, student, teacher, data, settings, cache, synchronise),
                    bare_seconds(method, student, teacher, batches, synchronise),
                )
                for _ in range(given.rounds)
            ]
            note(method, n_windows, min(ours for ours, _ in times), min(bare for _, bare in times))
    if given.json:
        found = {"device": str(teacher.device), "precision": teacher.precision, "lines": lines}
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
