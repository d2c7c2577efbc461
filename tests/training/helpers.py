"""What the tests of training share: settings, methods, models of several families, comparisons and interruptions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AlbertConfig,
    AutoModelForQuestionAnswering,
    BertConfig,
    BertTokenizerFast,
    DistilBertConfig,
    ElectraConfig,
    PretrainedConfig,
    RobertaConfig,
)

from haystack_distill import Reader, ReaderTrainer, RunResult, TrainingSettings, WindowSettings
from haystack_distill.models.language_model import LanguageModel
from haystack_distill.objectives import LossTerm, Objective, OutputRequest
from haystack_distill.objectives.losses import hidden_state_loss
from haystack_distill.training.loop import _LoopTrainer

MakeReader = Callable[..., Reader]
RunMethod = Callable[[ReaderTrainer, Reader, Path], RunResult]


def settings(**changed: Any) -> TrainingSettings:
    """Quick, exact, quiet."""
    quick = {"batch_size": 4, "learning_rate": 1e-3, "precision": "fp32", "progress": False, "log_every": 1}
    if not changed.get("keep_best"):
        quick["checkpoint_every"] = None
    return TrainingSettings(**(quick | changed))


def train_on_labels(trainer: ReaderTrainer, teacher: Reader, data: Path) -> RunResult:
    """A method without a teacher."""
    return trainer.train(data)


def distil_prediction_layer(trainer: ReaderTrainer, teacher: Reader, data: Path) -> RunResult:
    return trainer.distil_prediction_layer_from(teacher, data, temperature=2.0, distillation_loss_weight=0.75)


def distil_intermediate_layers(trainer: ReaderTrainer, teacher: Reader, data: Path) -> RunResult:
    return trainer.distil_intermediate_layers_from(teacher, data)


METHODS = [train_on_labels, distil_prediction_layer, distil_intermediate_layers]


def config_of(kind: str, vocabulary: int, dropout: float = 0.1) -> PretrainedConfig:
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    common = {"vocab_size": vocabulary, "max_position_embeddings": 66, "pad_token_id": 0}
    drop = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    if kind == "distilbert":
        drop = {"dropout": dropout, "attention_dropout": dropout, "qa_dropout": dropout}
        return DistilBertConfig(**common, dim=16, n_layers=2, n_heads=2, hidden_dim=24, **drop)
    if kind == "albert":
        return AlbertConfig(**common, **shape, embedding_size=8, classifier_dropout_prob=dropout, **drop)
    if kind == "electra":
        return ElectraConfig(**common, **shape, embedding_size=8, **drop)
    return {"bert": BertConfig, "roberta": RobertaConfig}[kind](**common, **shape, **drop)


def other_family(kind: str, tokenizer: BertTokenizerFast, **changed: Any) -> Reader:
    torch.manual_seed(3)
    model = AutoModelForQuestionAnswering.from_config(config_of(kind, len(tokenizer), **changed))
    return Reader(model, tokenizer, window_settings=WindowSettings(48, 16, 16), device="cpu", precision="fp32")


class LastState(Objective):
    """The student's last hidden state through a projection against the teacher's last one, for short windows."""

    student_request = OutputRequest(hidden_states=True)
    teacher_request = OutputRequest(hidden_states=True)

    def __init__(self, width: int, teacher_width: int, power: float = 2.0) -> None:
        super().__init__()
        self.weights = {"last": 0.7}
        self.projection = torch.nn.Linear(width, teacher_width)
        self.power = power

    def masks(self, batch):
        return {"last": batch["attention_mask"].sum(dim=1) < 40}

    def forward(self, student, teacher, batch):
        projected = self.projection(student.hidden_states[-1])
        values = hidden_state_loss(projected, teacher.hidden_states[-1], batch["attention_mask"])
        return {"last": LossTerm(values ** (self.power / 2), self.masks(batch)["last"])}


# --- comparisons -------------------------------------------------------------------------------------------------


def weights_of(model: Reader | LanguageModel) -> dict[str, Tensor]:
    """A copy of the weights as they are now."""
    return {name: weight.clone() for name, weight in model.model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two sets of weights are equal bit by bit."""
    return one.keys() == other.keys() and all(torch.equal(weight, other[name]) for name, weight in one.items())


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference between two sets of weights."""
    return max(float((weight - other[name]).abs().max()) for name, weight in one.items())


def with_gradients(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights without those that softmaxes cancel out: their gradients are rounding noise, which AdamW scales up."""
    return {name: weight for name, weight in weights.items() if not name.endswith(("key.bias", "qa_outputs.bias"))}


def logged(result: RunResult, name: str) -> list[float]:
    """The values of a name in the log of a run."""
    return [line[name] for line in result.history if name in line]


# --- interruptions -----------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Not an Exception, so that nothing in between handles it."""


def kill_at_loss(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Interrupt the run in its `number`-th forward pass, counted from 1."""
    compute, passes = _LoopTrainer.compute_loss, []

    def dying(self: _LoopTrainer, *arguments: Any, **keywords: Any) -> Tensor:
        passes.append(1)
        if len(passes) == number:
            raise Killed
        return compute(self, *arguments, **keywords)

    monkeypatch.setattr(_LoopTrainer, "compute_loss", dying)


def kill_at_step(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Interrupt the run in the first forward pass after `step` optimiser steps."""
    compute = _LoopTrainer.compute_loss

    def dying(self: _LoopTrainer, *arguments: Any, **keywords: Any) -> Tensor:
        if self.state.global_step == step:
            raise Killed
        return compute(self, *arguments, **keywords)

    monkeypatch.setattr(_LoopTrainer, "compute_loss", dying)


def watch_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that collects, for each forward pass, the number of optimiser steps before it."""
    compute, steps = _LoopTrainer.compute_loss, []

    def watching(self: _LoopTrainer, *arguments: Any, **keywords: Any) -> Tensor:
        steps.append(self.state.global_step)
        return compute(self, *arguments, **keywords)

    monkeypatch.setattr(_LoopTrainer, "compute_loss", watching)
    return steps
