"""Does augmenting help? A 3-layer student distilled on a file times 5 for one epoch, against the file alone for five.

    python benchmarks/augment_helps.py --teacher DIR --train train-v1.1.json.gz --dev dev-v1.1.json.gz --output DIR

Both arms start from the same cut of the teacher and take as many steps, with the same seed. With --held-out the
students are evaluated on training questions that neither arm saw, for choosing; without it on the dev questions.
Finished runs are kept in `--output`, so an interrupted benchmark can be resumed.
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
from haystack_distill import Reader, ReaderTrainer, TrainingSettings, WindowSettings, students
from haystack_distill.data.squad.load import load_examples
from haystack_distill.utils.atomic import write_json


def main(
    teacher: Annotated[Path, typer.Option(help="reader directory of the teacher")],
    train: Annotated[Path, typer.Option(help="SQuAD v1.1 training file")],
    dev: Annotated[Path, typer.Option(help="SQuAD v1.1 dev file")],
    output: Annotated[Path, typer.Option(help="where results go")],
    method: Annotated[str, typer.Option(help="layers (intermediate) or answers (prediction layer)")] = "layers",
    augment: Annotated[str, typer.Option(help="question, context or both; 'none' is the file alone")] = "both,none",
    seeds: str = "1,2,3",
    questions: int = 1000,
    factor: int = 5,
    learning_rate: float = 3e-4,
    held_out: Annotated[int, typer.Option(help="measure on so many other training questions")] = 0,
    dev_questions: int = 2000,
) -> None:
    """Run every arm with every seed and print a table."""
    reader = Reader.load(teacher, window_settings=WindowSettings(max_seq_len=256, doc_stride=128))
    everything = load_examples(train)
    order = np.random.default_rng(42).permutation(len(everything))
    alone = load_examples(everything.select(order[:questions].tolist()))
    if held_out:
        measured = load_examples(everything.select(order[questions : questions + held_out].tolist()))
    else:
        there = load_examples(dev)
        measured = load_examples(there.select(range(min(dev_questions, len(there)))))
    output.mkdir(parents=True, exist_ok=True)
    arms = augment.split(",")
    rows: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    for seed in map(int, seeds.split(",")):
        for arm in arms:
            sizes = f"{questions}-{factor}-{held_out or dev_questions}"
            done = output / f"{method}-{arm}-{learning_rate:g}-{sizes}-{seed}.json"
            if not done.exists():
                data, epochs = alone, factor
                if arm != "none":
                    chosen = AugmentSettings(multiplication_factor=factor, augment=arm, seed=seed)
                    rows_of = list(augmented(alone, chosen))
                    data, epochs = load_examples(datasets.Dataset.from_list(rows_of)), 1
                student = students.from_teacher(reader, layers=3)
                settings = TrainingSettings(n_epochs=epochs, learning_rate=learning_rate, seed=seed, progress=False)
                trainer = ReaderTrainer(student, None, settings)
                if method == "layers":
                    result = trainer.distil_intermediate_layers_from(reader, data)
                else:
                    result = trainer.distil_prediction_layer_from(
                        reader, data, temperature=2.0, distillation_loss_weight=0.8
                    )
                write_json(done, {"steps": result.steps, **student.evaluate(measured)})
                print(done.name, done.read_text(), flush=True)
            rows[arm].append(json.loads(done.read_text()))
    table = Table("data", "steps", "mean F1", "spread of F1", "mean EM")
    for arm, found in rows.items():
        f1 = [row["f1"] for row in found]
        name = "the file alone" if arm == "none" else f"times {factor}, {arm}"
        spread = f"{statistics.stdev(f1):.2f}" if len(f1) > 1 else ""
        exact = statistics.mean(row["exact"] for row in found)
        table.add_row(name, f"{found[0]['steps']:.0f}", f"{statistics.mean(f1):.2f}", spread, f"{exact:.2f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
