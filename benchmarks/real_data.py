"""Labels only, prediction layer only, intermediate layers then prediction layer: one student, real data, one run.

    python benchmarks/real_data.py --teacher DIR --train train-v1.1.json.gz --dev dev-v1.1.json.gz --output DIR

Every arm starts from the same cut of the fine-tuned teacher, head included, sees the same questions for the same number
of epochs with the same seed, and takes the better of the learning rates on questions held out of the training data. The
dev questions are used once, for each arm's chosen student. Finished arms are kept in `--output`, so an
interrupted benchmark can be resumed.
"""

import json
from pathlib import Path
from typing import Annotated

import datasets
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from haystack_distill import Reader, ReaderTrainer, TrainingSettings, WindowSettings, students
from haystack_distill.data.squad.load import load_examples
from haystack_distill.training.run_record import versions
from haystack_distill.utils.atomic import write_json

ARMS = ("labels", "prediction", "intermediate+prediction")


def train_arm(arm: str, teacher: Reader, data: datasets.Dataset, rate: float, epochs: int, seed: int) -> Reader:
    """One arm at one learning rate; two thirds of the epochs go to the intermediate layers where there are any.

    The rate is then that of the layers, and the prediction layer is distilled at `ANSWER_RATE`.
    """
    student = students.from_teacher(teacher, layers=3)
    first = 2 * epochs // 3 if arm == "intermediate+prediction" else 0

    def trainer(n_epochs: int, learning_rate: float) -> ReaderTrainer:
        return ReaderTrainer(student, None, TrainingSettings(n_epochs=n_epochs, learning_rate=learning_rate, seed=seed))

    if first:
        trainer(first, rate).distil_intermediate_layers_from(teacher, data)
    if arm == "labels":
        trainer(epochs, rate).train(data)
    else:
        trainer(epochs - first, ANSWER_RATE if first else rate).distil_prediction_layer_from(
            teacher, data, temperature=TEMPERATURE, distillation_loss_weight=WEIGHT
        )
    return student


ANSWER_RATE = 3e-4
TEMPERATURE = 2.0
WEIGHT = 0.8


def main(
    teacher: Annotated[Path, typer.Option(help="reader directory of the teacher")],
    train: Annotated[Path, typer.Option(help="SQuAD v1.1 training file")],
    dev: Annotated[Path, typer.Option(help="SQuAD v1.1 dev file")],
    output: Annotated[Path, typer.Option(help="where results and students go")],
    questions: int = 5000,
    held_out: int = 500,
    dev_questions: int = 2000,
    epochs: int = 3,
    rates: Annotated[str, typer.Option(help="learning rates of labels and of the prediction layer")] = "1e-4,3e-4",
    layer_rates: Annotated[str, typer.Option(help="learning rates of the intermediate layers")] = "3e-4,1e-3",
    seed: int = 42,
    max_seq_len: int = 256,
    doc_stride: int = 128,
) -> None:
    """Compare the three arms and print a table."""
    reader = Reader.load(teacher, window_settings=WindowSettings(max_seq_len, doc_stride))
    everything = load_examples(train)
    order = np.random.default_rng(seed).permutation(len(everything))
    data = load_examples(everything.select(order[:questions].tolist()))
    held = load_examples(everything.select(order[questions : questions + held_out].tolist()))
    measured = load_examples(load_examples(dev).select(range(dev_questions)))
    output.mkdir(parents=True, exist_ok=True)
    rates_of = {arm: (layer_rates if arm == "intermediate+prediction" else rates).split(",") for arm in ARMS}
    for arm in ARMS:
        for rate in rates_of[arm]:
            done = output / f"{arm}-{rate}.json"
            if done.exists():
                continue
            student = train_arm(arm, reader, data, float(rate), epochs, seed)
            student.save(output / f"{arm}-{rate}")
            write_json(done, {"arm": arm, "rate": rate, "held_out": student.evaluate(held)})
            print(done.read_text(), flush=True)
    rows = {"teacher": {"rate": None, "dev": reader.evaluate(measured)}}
    for arm in ARMS:
        tried = [json.loads((output / f"{arm}-{rate}.json").read_text()) for rate in rates_of[arm]]
        best = max(tried, key=lambda result: result["held_out"]["f1"])
        student = Reader.load(output / f"{arm}-{best['rate']}", window_settings=reader.window_settings)
        rows[arm] = {"rate": best["rate"], "held_out": best["held_out"], "dev": student.evaluate(measured)}
    write_json(output / "results.json", {"versions": versions(), "rows": rows})
    table = Table("arm", "learning rate", "EM", "F1", "of the teacher's F1")
    for name, row in rows.items():
        share = row["dev"]["f1"] / rows["teacher"]["dev"]["f1"]
        table.add_row(name, str(row["rate"]), f"{row['dev']['exact']:.1f}", f"{row['dev']['f1']:.1f}", f"{share:.1%}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
