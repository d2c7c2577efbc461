"""Distil with several processes, one per GPU or, without GPUs, several on the CPU.

    accelerate launch --multi_gpu --num_processes 4 examples/several_processes.py --output-dir student
    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 examples/several_processes.py

(`--multi_gpu` stands for several processes; with `--cpu` accelerate starts one.) The script would be the same for one
process, but that the main process alone prints. `batch_size` is per process.
"""

import argparse

from accelerate import PartialState

from haystack_distill import ReaderTrainer, TrainingSettings, students
from haystack_distill.data.sample import sample_path
from haystack_distill.models.embedded_teacher import embedded_teacher

parser = argparse.ArgumentParser()
parser.add_argument("--data", default=sample_path("train"), help="questions to train on; the sample by default")
parser.add_argument("--dev-data", default=sample_path("dev"), help="other questions, to measure on")
parser.add_argument("--output-dir", default="student", help="where all processes can write")
parser.add_argument("--max-steps", type=int, help="optimiser steps")
arguments = parser.parse_args()

teacher = embedded_teacher()  # yours: Reader.load("deepset/roberta-base-squad2")
student = students.from_teacher(teacher, layers=3)
settings = TrainingSettings(n_epochs=4, max_steps=arguments.max_steps, learning_rate=3e-4, batch_size=8)
result = ReaderTrainer(student, arguments.output_dir, settings).distil_prediction_layer_from(
    teacher, arguments.data, arguments.dev_data, temperature=2.0, distillation_loss_weight=0.8
)
processes = PartialState()
if processes.is_main_process:
    print(f"{processes.num_processes} processes, F1 {result.metrics['f1']:.1f}")
