"""How a run trains: one dataclass, checked when it is made."""

import math
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

from haystack_distill.errors import DistilError
from haystack_distill.utils.checks import PRECISIONS, Precision, check_argument, is_integer, is_number, require_seed

Interval = int | Literal["epoch"] | None
AutoInterval = int | Literal["auto", "epoch"] | None
Schedule = Literal["linear", "cosine", "constant", "cyclic"]
OptimizerName = Literal["adamw", "adam", "adadelta", "muon"]


@dataclass(frozen=True)
class TrainingSettings:
    """Settings that every kind of run shares.

    Args:
        n_epochs: Passes over the windows.
        max_steps: Optimiser steps of the whole run, in place of `n_epochs`; None leaves the length to the epochs.
        learning_rate: Peak of the learning rate.
        learning_rate_schedule: How the learning rate changes after it has risen: "linear" (falls to 0), "cosine" (falls
            to 0 along half a cosine), "constant", or "cyclic" (falls to 0 linearly `n_cycles` times, each time from its
            peak).
        n_cycles: How often a cyclic learning rate falls, 2 or more; with "cyclic" only.
        optimizer: "adamw", "adam" or "adadelta" (PyTorch's; Adadelta wants a learning rate near 1), or "muon": Muon for
            the matrices of the encoder's layers, which stand a higher rate than with AdamW, and AdamW for the rest.
        layer_decay: What the learning rate of a layer is multiplied with for each layer above it; that of the
            embeddings as if they were the layer below the first. 1 for the same rate everywhere.
        embedding_learning_rate: Peak for the embeddings; None for that of the rest.
        head_learning_rate: Peak for the head; None for that of the rest.
        projection_learning_rate: Peak for what a method trains beside the student, such as projections between widths;
            None for that of the student.
        batch_size: Windows per forward pass and process.
        gradient_accumulation_steps: Forward passes per optimiser step. Batches of 4 accumulated 4 times give what
            batches of 16 give.
        max_grad_norm: Gradients are scaled down to this norm; 0 leaves them as they are.
        warmup_proportion: Share of the steps over which the learning rate rises.
        weight_decay: AdamW's and Muon's weight decay, on weights but not on biases and layer norms. Adam and Adadelta
            add it to the gradient (an L2 penalty).
        seed: Seed of the order of windows, of dropout and of fresh projections.
        dropout: Dropout of the student while it trains; None keeps that of its configuration. "auto" does so for a
            BiLSTM reader and is 0 for others: a student is small and sees few epochs, so it underfits rather than
            overfits, and on a CPU dropout takes a third of the time.
        precision: "auto", "fp32", "bf16" or "fp16"; see `utils.devices.resolve_precision`.
        torch_compile: Compile the layers of the student, and of a teacher that runs beside it, with torch.compile. It
            takes a minute or two at the beginning, and is for long runs on a GPU; on a CPU it gains nothing.
        evaluate_every: When the student is measured on the dev data: "epoch", a number of steps, or None for only at
            the end. "auto" is "epoch" with dev data; without dev data, any other value but None is refused.
        keep_best: End with the weights of the best evaluation, not with the last ones; needs dev data.
        best_by: Which evaluation is the best: that of the highest "f1", or of the lowest "loss", the mean cross entropy
            of the labels over the labelled dev windows, which is then measured too; needs dev data. Gradual unfreezing
            with `phase_patience` goes by it, too.
        early_stopping_patience: Stop after so many evaluations without a better one; needs `keep_best` and dev data.
            With gradual unfreezing those of its last phase count.
        checkpoint_every: "epoch", a number of steps, or None for no checkpoints. "auto" is each evaluation with
            `keep_best`, which allows no other value than that of `evaluate_every`, and otherwise "epoch" where there is
            an output directory.
        keep_checkpoints: How many checkpoints are kept while the run lasts; they are removed when it is finished.
        resume: Resume from the last checkpoint in the output directory, if there is one. A run that is finished there
            is not repeated; its result is taken.
        overwrite: Train anew in an output directory that holds a reader or a run that did not finish. With `resume`,
            a run that did not finish is resumed.
        log_every: Steps between two lines of the log.
        tensorboard: Write the log for TensorBoard too, to `<output_dir>/tensorboard`.
        progress: Show progress bars.

    Raises:
        DistilError: A value is wrong, or could have no effect beside the others.
    """

    n_epochs: int = 2
    max_steps: int | None = None
    learning_rate: float = 5e-5
    learning_rate_schedule: Schedule = "linear"
    n_cycles: int | None = None
    optimizer: OptimizerName = "adamw"
    layer_decay: float = 1.0
    embedding_learning_rate: float | None = None
    head_learning_rate: float | None = None
    projection_learning_rate: float | None = None
    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    warmup_proportion: float = 0.1
    weight_decay: float = 0.01
    seed: int = 42
    dropout: float | Literal["auto"] | None = "auto"
    precision: Precision = "auto"
    torch_compile: bool = False
    evaluate_every: AutoInterval = "auto"
    keep_best: bool = False
    best_by: Literal["f1", "loss"] = "f1"
    early_stopping_patience: int | None = None
    checkpoint_every: AutoInterval = "auto"
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
                value is None or value in ("auto", "epoch") or is_integer(value, 1),
                "'auto', 'epoch', a number of steps or None",
            )
        for name in ("torch_compile", "keep_best", "resume", "overwrite", "tensorboard", "progress"):
            check_argument(name, getattr(self, name), isinstance(getattr(self, name), bool), "True or False")
        check_argument(
            "max_steps", self.max_steps, self.max_steps is None or is_integer(self.max_steps, 1), "at least 1, or None"
        )
        rate, decay, norm = self.learning_rate, self.weight_decay, self.max_grad_norm
        check_argument("learning_rate", rate, is_number(rate) and rate > 0, "a number above 0")
        self._check_optimisation()
        check_argument("weight_decay", decay, is_number(decay) and decay >= 0, "a number of at least 0")
        check_argument(
            "max_grad_norm", norm, norm == math.inf or (is_number(norm) and norm >= 0), "a number of at least 0"
        )
        for name, value, words in (
            ("warmup_proportion", self.warmup_proportion, ""),
            ("dropout", self.dropout, ", 'auto' or None"),
        ):
            right = (is_number(value) and 0 <= value < 1) or (value in ("auto", None) and bool(words))
            check_argument(name, value, right, f"a number from 0 to below 1{words}")
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
        check_argument("best_by", self.best_by, self.best_by in ("f1", "loss"), "'f1' or 'loss'")
        if self.best_by != "f1" and not self.evaluate_every:
            raise DistilError(
                f"best_by={self.best_by!r} has no effect with evaluate_every=None; leave one of the two out"
            )
        # A checkpoint is where the best weights are kept, so one is written at each evaluation and nowhere else.
        if self.keep_best and self.checkpoint_every not in ("auto", self.evaluation_interval):
            raise DistilError(
                f"checkpoint_every={self.checkpoint_every!r} has no effect with keep_best, which writes a checkpoint "
                "at each evaluation; leave it out, or give it the value of evaluate_every"
            )

    def _check_optimisation(self) -> None:
        schedules, optimizers = get_args(Schedule), get_args(OptimizerName)
        schedule, cycles = self.learning_rate_schedule, self.n_cycles
        check_argument("learning_rate_schedule", schedule, schedule in schedules, f"one of {', '.join(schedules)}")
        check_argument("optimizer", self.optimizer, self.optimizer in optimizers, f"one of {', '.join(optimizers)}")
        check_argument(
            "n_cycles", cycles, cycles is None or is_integer(cycles, 2), "a whole number of at least 2, or None"
        )
        if (cycles is None) is (schedule == "cyclic"):
            raise DistilError("n_cycles belongs to learning_rate_schedule='cyclic'; give both or none")
        decay = self.layer_decay
        check_argument("layer_decay", decay, is_number(decay) and 0 < decay <= 1, "a number above 0, at most 1")
        for name in ("embedding_learning_rate", "head_learning_rate", "projection_learning_rate"):
            value = getattr(self, name)
            check_argument(name, value, value is None or (is_number(value) and value > 0), "a number above 0, or None")

    @property
    def evaluation_interval(self) -> Interval:
        """When a student is measured, where there are dev data: "epoch", a number of steps, or None for at the end."""
        return "epoch" if self.evaluate_every == "auto" else self.evaluate_every

    @property
    def checkpoint_interval(self) -> Interval:
        """When a run with an output directory writes checkpoints: "epoch", a number of steps, or None for never."""
        if self.keep_best:
            return self.evaluation_interval
        return "epoch" if self.checkpoint_every == "auto" else self.checkpoint_every

    def require_nothing_measured(
        self, why: str = "without dev_data", remedy: str = "give dev_data or dev_split too, or leave it out"
    ) -> None:
        """Check that no setting is set that has an effect only where the student is measured during the run.

        Args:
            why: Why it is not measured; follows "has no effect".
            remedy: What to do.

        Raises:
            DistilError: There is one.
        """
        choices = {"keep_best": self.keep_best, "early_stopping_patience": self.early_stopping_patience is not None}
        choices["best_by"] = self.best_by != "f1"
        choices["evaluate_every"] = self.evaluate_every not in ("auto", None)
        for name, is_set in choices.items():
            if is_set:
                raise DistilError(f"{name} has no effect {why}; {remedy}")

    def unmeasured(self) -> "TrainingSettings":
        """The settings of the same run without dev data."""
        return replace(self, evaluate_every=None, keep_best=False, best_by="f1", early_stopping_patience=None)

    @classmethod
    def names(cls) -> list[str]:
        """The names of all settings, in order."""
        return [field.name for field in fields(cls)]
