"""How a run trains: one dataclass, checked when it is made."""

import math
from dataclasses import dataclass, fields
from typing import Literal

from haystack_distill.errors import DistilError
from haystack_distill.utils.checks import PRECISIONS, check_argument, is_integer, is_number, require_seed

Interval = int | Literal["epoch"] | None


@dataclass(frozen=True)
class TrainingSettings:
    """Settings that every kind of run shares.

    Args:
        n_epochs: Passes over the windows.
        max_steps: Train for so many optimiser steps, whatever `n_epochs` says; None leaves it to the epochs.
        learning_rate: Peak of AdamW's learning rate; it falls to 0 linearly.
        batch_size: Windows a forward pass, per process.
        gradient_accumulation_steps: Forward passes an optimiser step. 4 times 4 gives what 16 gives.
        max_grad_norm: Gradients are scaled down to this norm; 0 leaves them as they are.
        warmup_proportion: Share of the steps over which the learning rate rises.
        weight_decay: AdamW's, on weights but not on biases and layer norms.
        seed: Of the order of windows, of dropout, of fresh projections.
        dropout: Dropout of the student while it trains; None keeps what its configuration says. A student is small
            and sees few epochs, so it underfits rather than overfits, and on a CPU dropout takes a third of a step.
        precision: "auto", "fp32", "bf16" or "fp16"; see `utils.devices.resolve_precision`.
        evaluate_every: "epoch", a number of steps, or None for only at the end; needs dev data.
        keep_best: With dev data, end with the weights of the evaluation with the highest F1, not with the last ones.
        early_stopping_patience: Stop after so many evaluations without a better F1; needs `keep_best` and dev data.
        checkpoint_every: "epoch", a number of steps, or None for no checkpoints. With `keep_best` and dev data
            checkpoints are written at each evaluation. A run without an output directory writes none otherwise.
        keep_checkpoints: How many checkpoints are kept while the run lasts; they go when it is finished.
        resume: Go on from the last checkpoint in the output directory, if there is one. A run that is finished there
            is not done again; its result is taken.
        overwrite: Train anew in an output directory that holds a reader or a run that did not finish. With `resume`,
            a run that did not finish is resumed.
        log_every: Steps between two lines of the log.
        tensorboard: Write the log for TensorBoard too, to `<output_dir>/tensorboard`.
        progress: Show progress bars.

    Raises:
        DistilError: A value that cannot be.
    """

    n_epochs: int = 2
    max_steps: int | None = None
    learning_rate: float = 5e-5
    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    warmup_proportion: float = 0.1
    weight_decay: float = 0.01
    seed: int = 42
    dropout: float | None = 0.0
    precision: str = "auto"
    evaluate_every: Interval = "epoch"
    keep_best: bool = False
    early_stopping_patience: int | None = None
    checkpoint_every: Interval = "epoch"
    keep_checkpoints: int = 2
    resume: bool = False
    overwrite: bool = False
    log_every: int = 10
    tensorboard: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("n_epochs", "batch_size", "gradient_accumulation_steps", "keep_checkpoints", "log_every"):
            check_argument(
                name, getattr(self, name), is_integer(getattr(self, name), 1), "a whole number of at least 1"
            )
        for name in ("evaluate_every", "checkpoint_every"):
            value = getattr(self, name)
            check_argument(
                name,
                value,
                value is None or value == "epoch" or is_integer(value, 1),
                "'epoch', a number of steps or None",
            )
        for name in ("keep_best", "resume", "tensorboard", "progress"):
            check_argument(name, getattr(self, name), isinstance(getattr(self, name), bool), "True or False")
        check_argument(
            "max_steps", self.max_steps, self.max_steps is None or is_integer(self.max_steps, 1), "at least 1, or None"
        )
        rate, decay, norm = self.learning_rate, self.weight_decay, self.max_grad_norm
        check_argument("learning_rate", rate, is_number(rate) and rate > 0, "a number above 0")
        check_argument("weight_decay", decay, is_number(decay) and decay >= 0, "a number of at least 0")
        check_argument(
            "max_grad_norm", norm, norm == math.inf or (is_number(norm) and norm >= 0), "a number of at least 0"
        )
        for name, value, none in (
            ("warmup_proportion", self.warmup_proportion, ""),
            ("dropout", self.dropout, ", or None"),
        ):
            right = (is_number(value) and 0 <= value < 1) or (value is None and bool(none))
            check_argument(name, value, right, f"a number from 0 to below 1{none}")
        require_seed(self.seed)
        check_argument("precision", self.precision, self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        patience = self.early_stopping_patience
        check_argument(
            "early_stopping_patience", patience, patience is None or is_integer(patience, 1), "at least 1, or None"
        )
        if patience is not None and not (self.keep_best and self.evaluate_every):
            raise DistilError("early_stopping_patience needs keep_best=True and evaluate_every")
        if self.keep_best and not self.evaluate_every:
            raise DistilError("keep_best needs evaluate_every")
        # A checkpoint is where the best weights are kept, so one is written at each evaluation and nowhere else.
        if self.keep_best and self.checkpoint_every not in ("epoch", self.evaluate_every):
            raise DistilError("with keep_best, checkpoint_every must be what evaluate_every is (or stay 'epoch')")

    @classmethod
    def names(cls) -> list[str]:
        """The names of all settings, in order."""
        return [field.name for field in fields(cls)]
