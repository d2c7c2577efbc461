"""Train with an objective of your own beside one of ours, interrupt the run, and resume it.

The objective draws the student's last hidden states towards the teacher's by their cosine.

    python examples/own_objective.py --output-dir student
"""

import argparse

from transformers import TrainerCallback

from haystack_distill import ReaderTrainer, RunResult, TrainingSettings, students
from haystack_distill.data.sample import sample_path
from haystack_distill.models.embedded_teacher import embedded_teacher
from haystack_distill.objectives import LossTerm, Objective, OutputRequest, PredictionLayer
from haystack_distill.objectives.losses import cosine_loss


class LastHiddenState(Objective):
    """1 - cosine between the last hidden states of student and teacher; their widths must be the same."""

    student_request = OutputRequest(hidden_states=True)
    teacher_request = OutputRequest(hidden_states=True)

    def __init__(self):
        super().__init__()
        self.weights = {"last_state": 1.0}

    def forward(self, student, teacher, batch):
        values = cosine_loss(student.hidden_states[-1], teacher.hidden_states[-1], batch["attention_mask"])
        return {"last_state": LossTerm(values, self.masks(batch)["last_state"])}  # one value per window


class InterruptAt(TrainerCallback):
    """Stops the run as Ctrl-C would."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def run(*, resume: bool, callbacks=()) -> RunResult:
    """The whole run, or what is left of it."""
    teacher = embedded_teacher()  # yours: Reader.load("deepset/roberta-base-squad2")
    student = students.from_teacher(teacher, layers=3)
    objective = PredictionLayer(temperature=2.0).objective() + 0.5 * LastHiddenState()
    settings = TrainingSettings(
        n_epochs=3,
        max_steps=arguments.max_steps,
        learning_rate=3e-4,
        checkpoint_every=1 if arguments.max_steps else 20,
        log_every=1,
        resume=resume,
    )
    trainer = ReaderTrainer(student, arguments.output_dir, settings)
    return trainer.distil(teacher, arguments.data, objective, arguments.dev_data, callbacks=callbacks)


parser = argparse.ArgumentParser()
parser.add_argument("--data", default=sample_path("train"), help="questions to train on; the sample by default")
parser.add_argument("--dev-data", default=sample_path("dev"), help="other questions, to measure on")
parser.add_argument("--output-dir", default="student")
parser.add_argument("--max-steps", type=int, help="optimiser steps")
arguments = parser.parse_args()

steps_before = arguments.max_steps // 2 if arguments.max_steps else 50
try:
    run(resume=False, callbacks=[InterruptAt(steps_before)])
except KeyboardInterrupt:
    print(f"interrupted after {steps_before} steps")
result = run(resume=True)
for line in result.history:
    if "loss_last_state" in line:
        print(f"step {line['step']:.0f}: last_state {line['loss_last_state']:.4f}, total {line['loss']:.4f}")
print(f"F1 {result.metrics['f1']:.1f} after {result.steps} steps")
