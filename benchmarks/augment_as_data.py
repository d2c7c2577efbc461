"""Which text to edit: contexts, questions or both, as data to distil from, with equal optimiser steps.

python benchmarks/augment_as_data.py --teacher DIR --squad DIR --output DIR --questions 1000 --steps 1500 --seeds 1,2,3

`--squad` is a directory with train-v1.1.json and dev-v1.1.json, plain or as .gz. Every arm starts from the same cut of
the teacher, learns the teacher's answers on the same questions, multiplied, and takes as many steps. Finished runs are
kept in `--output`, so an interrupted benchmark can be resumed.
"""

import json
import statistics
from pathlib import Path
from typing import Annotated

import datasets
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from augment.augmenter import augmented
from augment.settings import AugmentSettings
from haystack_distill import DistilError, Reader, ReaderTrainer, TrainingSettings, WindowSettings, students
from haystack_distill.data.squad.load import load_examples
from haystack_distill.objectives import PredictionLayer
from haystack_distill.utils.atomic import write_json


def main(
    teacher: Annotated[Path, typer.Option(help="reader directory of the teacher")],
    squad: Annotated[Path, typer.Option(help="directory with SQuAD v1.1")],
    output: Annotated[Path, typer.Option(help="where results go")],
    questions: int = 1000,
    steps: int = 1500,
    seeds: str = "1,2,3",
    factor: int = 5,
    layers: int = 3,
    learning_rate: float = 3e-4,
    dev_questions: int = 2000,
    arms: Annotated[str, typer.Option(help="none is the file alone")] = "none,context,question,both",
) -> None:
    """Run every arm with every seed and print a table."""
    reader = Reader.load(teacher, window_settings=WindowSettings(max_seq_len=256, doc_stride=128))
    everything = load_examples(_file(squad, "train-v1.1.json"))
    chosen = np.random.default_rng(42).permutation(len(everything))[:questions]
    alone = load_examples(everything.select(chosen.tolist()))
    dev = load_examples(_file(squad, "dev-v1.1.json"))
    measured = load_examples(dev.select(range(min(dev_questions, len(dev)))))
    output.mkdir(parents=True, exist_ok=True)
    method = PredictionLayer(temperature=2.0, distillation_loss_weight=0.8)
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms.split(",")}
    for seed in map(int, seeds.split(",")):
        for arm, rows in found.items():
            done = output / f"{arm}-{questions}-{factor}-{steps}-{layers}-{learning_rate:g}-{dev_questions}-{seed}.json"
            if not done.exists():
                data = alone
                if arm != "none":
                    settings = AugmentSettings(multiplication_factor=factor, augment=arm, seed=seed)
                    data = load_examples(datasets.Dataset.from_list(list(augmented(alone, settings))))
                student = students.from_teacher(reader, layers=layers)
                training = TrainingSettings(max_steps=steps, learning_rate=learning_rate, seed=seed, progress=False)
                ReaderTrainer(student, None, training).distil(reader, data, method)
                write_json(done, student.evaluate(measured))
                print(done.name, done.read_text(), flush=True)
            rows.append(json.loads(done.read_text()))
    table = Table("data", "mean F1", *(f"F1, seed {seed}" for seed in seeds.split(",")), title=f"{steps} steps each")
    for arm, rows in found.items():
        f1 = [row["f1"] for row in rows]
        name = "the file alone" if arm == "none" else f"times {factor}, {arm}"
        table.add_row(name, f"{statistics.mean(f1):.2f}", *(f"{value:.2f}" for value in f1))
    Console().print(table)


def _file(directory: Path, name: str) -> Path:
    """A file of a directory, plain or as .gz."""
    for path in (directory / name, directory / f"{name}.gz"):
        if path.exists():
            return path
    raise DistilError(f"{directory} has neither {name} nor {name}.gz; give the directory with SQuAD v1.1")


if __name__ == "__main__":
    typer.run(main)
