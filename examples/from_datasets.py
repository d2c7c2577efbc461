"""Distil on questions that are in a `datasets.Dataset`, some of them without labels.

python examples/from_datasets.py --output-dir student
"""

import argparse
import json
from pathlib import Path

import datasets

from haystack_distill import ReaderTrainer, TrainingSettings, students
from haystack_distill.data.sample import sample_path
from haystack_distill.models.embedded_teacher import embedded_teacher

parser = argparse.ArgumentParser()
parser.add_argument("--data", default=sample_path("train"), help="questions to train on; the sample by default")
parser.add_argument("--dev-data", default=sample_path("dev"), help="other questions, to measure on")
parser.add_argument("--output-dir", default="student")
parser.add_argument("--max-steps", type=int, help="optimiser steps")
arguments = parser.parse_args()


def dataset_of(path: str | Path) -> datasets.Dataset:
    """Rows with the columns of SQuAD; yours may come from `load_dataset`, from pandas or from a database."""
    rows = []
    for article in json.loads(Path(path).read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                answers = question["answers"]
                rows.append(
                    {
                        "id": question["id"],
                        "question": question["question"],
                        "context": paragraph["context"],
                        "answers": {
                            "text": [answer["text"] for answer in answers],
                            "answer_start": [answer["answer_start"] for answer in answers],
                        },
                        "is_impossible": question.get("is_impossible", False),  # labelled: there is no answer
                    }
                )
    return datasets.Dataset.from_list(rows)


# Every second question loses its label, as if nobody had annotated it: it teaches through the teacher alone.
train = dataset_of(arguments.data).map(lambda row, index: row | {"labelled": index % 2 == 0}, with_indices=True)
print(f"{len(train)} questions, {sum(train['labelled'])} of them labelled")

teacher = embedded_teacher()  # yours: Reader.load("deepset/roberta-base-squad2")
student = students.from_teacher(teacher, layers=3)
settings = TrainingSettings(n_epochs=4, max_steps=arguments.max_steps, learning_rate=3e-4)
result = ReaderTrainer(student, arguments.output_dir, settings).distil_prediction_layer_from(
    teacher, train, dataset_of(arguments.dev_data), temperature=2.0, distillation_loss_weight=0.8
)
print(f"F1 {result.metrics['f1']:.1f}, exact match {result.metrics['exact']:.1f}")
