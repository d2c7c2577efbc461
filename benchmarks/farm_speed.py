"""Prediction-layer distillation, ours against farm-haystack's FARMReader: same teacher, student, questions and
settings.

    .venv/farm/bin/python benchmarks/farm_speed.py --teacher DIR --train train-v1.1.json.gz --dev dev-v1.1.json.gz

Each run is a process of its own with an empty cache; the arms alternate. Timed is the call that distils, reading and
the teacher's pass included; imports and loading the two models are not. F1 is measured by the same reader for both
arms.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

SETTINGS = {"n_epochs": 1, "learning_rate": 1e-4, "batch_size": 16}
LOSS = {"temperature": 1.0, "distillation_loss_weight": 0.5}


def ours(teacher: str, student: str, data: str, output: str) -> float:
    """Seconds that ReaderTrainer takes."""
    from haystack_distill import Reader, ReaderTrainer, TrainingSettings

    readers = Reader.load(teacher), Reader.load(student)
    began = time.monotonic()
    settings = TrainingSettings(**SETTINGS, progress=False)
    ReaderTrainer(readers[1], None, settings).distil_prediction_layer_from(readers[0], data, **LOSS)
    seconds = time.monotonic() - began
    readers[1].save(output)
    return seconds


def farm(teacher: str, student: str, data: str, output: str) -> float:
    """Seconds that FARMReader takes."""
    from haystack.nodes import FARMReader

    from haystack_distill.integrations.farm import reader_from_farm

    arguments = {"use_gpu": False, "num_processes": 0, "max_seq_len": 384, "doc_stride": 128, "progress_bar": False}
    readers = FARMReader(teacher, **arguments), FARMReader(student, **arguments)
    path = Path(data)
    began = time.monotonic()
    readers[1].distil_prediction_layer_from(
        readers[0],
        data_dir=str(path.parent),
        train_filename=path.name,
        dev_split=0,
        use_gpu=False,
        num_processes=0,
        max_seq_len=384,
        save_dir=f"{output}-farm",
        **SETTINGS,
        **LOSS,
    )
    seconds = time.monotonic() - began
    reader_from_farm(readers[1]).save(output)  # FARM's own format is not a Hugging Face directory
    return seconds


def main(
    teacher: Annotated[Path, typer.Option(help="reader directory of the teacher")],
    train: Annotated[Path, typer.Option(help="SQuAD v1.1 training file")],
    dev: Annotated[Path, typer.Option(help="SQuAD v1.1 dev file")],
    questions: int = 600,
    dev_questions: int = 500,
    runs: int = 3,
    student: Annotated[
        Path | None, typer.Option(help="reader directory; by default every second teacher layer")
    ] = None,
    arm: Annotated[str, typer.Option(hidden=True)] = "",
    data: Annotated[str, typer.Option(hidden=True)] = "",
    output: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Run both arms `runs` times in turn and print medians, the ratio and F1."""
    if arm:
        seconds = (ours if arm == "ours" else farm)(str(teacher), str(student), data, output)
        print(json.dumps({"seconds": seconds}))
        return
    from haystack_distill import Reader, students
    from haystack_distill.squad import load_examples, write_squad

    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        write_squad(load_examples(train).select(range(questions)), work / "data.json", version="1.1")
        measured = load_examples(load_examples(dev).select(range(dev_questions)))
        if student is None:
            student = students.from_teacher(Reader.load(teacher), layers=3).save(work / "student")
        seconds: dict[str, list[float]] = {"ours": [], "farm": []}
        scores: dict[str, float] = {}
        for run in range(runs):
            for name in seconds:
                environment = os.environ | {"HAYSTACK_DISTILL_CACHE": str(work / f"cache-{run}-{name}")}
                call = [sys.executable, __file__, "--arm", name, "--data", str(work / "data.json")]
                call += ["--teacher", str(teacher), "--student", str(student), "--output", str(work / f"{name}-{run}")]
                call += ["--train", str(train), "--dev", str(dev)]
                done = subprocess.run(call, env=environment, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(done.stderr)
                seconds[name].append(json.loads(done.stdout.strip().splitlines()[-1])["seconds"])
                print(f"{name}: {seconds[name][-1]:.1f} s", flush=True)
                if run == 0:
                    scores[name] = Reader.load(work / f"{name}-0").evaluate(measured)["f1"]
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        print(json.dumps({"seconds": seconds, "ratio": medians["farm"] / medians["ours"], "f1": scores}, indent=2))


if __name__ == "__main__":
    typer.run(main)
