"""What changes while a run lasts: weights, temperatures, learning rates; optimisers. Runs resume where they were."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from haystack_distill import DistilError, Reader, ReaderTrainer
from haystack_distill.objectives import IntermediateLayers, Labels, Linear, Method, Objective, PredictionLayer
from haystack_distill.training.loop import _LoopTrainer
from tests.training.helpers import Killed, kill_at_loss, logged, same, settings, weights_of

SCHEDULED = (
    Linear(1.0, 0.0) * IntermediateLayers(attention_loss_weight=0)
    + Linear(0.0, 1.0) * PredictionLayer(4.0, final_temperature=1.0, flsw_beta=0.5)
    + 0.5 * Labels()
)


def interrupted_and_resumed(
    pair: Callable,
    data: Path,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: Callable[[Reader, Reader], Method | Objective],
    **changed: Any,
) -> tuple[list[float], list[float]]:
    """The losses of a run, and of one that was interrupted; their weights are the same bit by bit."""
    losses, found = [], []
    for name in ("whole", "killed", "killed"):
        student, teacher = pair()
        resume = bool(losses) and name == "killed" and (directory / name).exists()
        chosen = settings(max_steps=6, checkpoint_every=2, evaluate_every=None, resume=resume, **changed)
        trainer = ReaderTrainer(student, directory / name, chosen)
        what = method(student, teacher)
        source = teacher if not isinstance(what, Labels) else None
        if name == "killed" and not resume:
            with monkeypatch.context() as patch:
                kill_at_loss(patch, 4)
                with pytest.raises(Killed):
                    trainer.distil(source, data, what)
            continue
        losses.append(logged(trainer.distil(source, data, what), "loss"))
        found.append(weights_of(student))
    assert same(*found)
    return losses[0], losses[1]


def test_weights_and_temperature_follow_the_steps_also_after_a_resume(
    pair: Callable, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, dict[str, float]]] = []
    compute = _LoopTrainer.compute_loss

    def watching(self: _LoopTrainer, *arguments: Any, **keywords: Any) -> torch.Tensor:
        seen.append((self.state.global_step, dict(self.objective.weights)))
        return compute(self, *arguments, **keywords)

    monkeypatch.setattr(_LoopTrainer, "compute_loss", watching)
    losses = interrupted_and_resumed(pair, data, tmp_path, monkeypatch, lambda *_: SCHEDULED)
    assert losses[0] == losses[1]
    whole, resumed = dict(seen[:6]), dict(seen[-4:])
    assert [step for step, _ in seen[-4:]] == [2, 3, 4, 5]
    assert resumed == {step: whole[step] for step in range(2, 6)}
    assert whole[0] == {"embedding": 1.0, "hidden": 1.0, "labels_2": 0.5}
    assert whole[1] == pytest.approx(
        {"embedding": 0.8, "hidden": 0.8, "distillation": 0.1, "labels": 0.1, "labels_2": 0.5}
    )
    assert whole[5] == {"distillation": 0.5, "labels": 0.5, "labels_2": 0.5}


def test_an_objective_with_a_schedule_is_recorded(pair: Callable, data: Path, tmp_path: Path) -> None:
    student, _ = pair()
    configs = student.model.config, student.model.config
    objective = 0.5 * Labels().objective(*configs) + Linear(0.0, 1.0) * Labels().objective(*configs)
    trainer = ReaderTrainer(student, tmp_path / "run", settings(max_steps=2))
    first = trainer.distil(None, data, objective)
    assert objective.weights == {"labels": 0.5, "labels_2": 1.0}  # those of the last step
    again = ReaderTrainer(pair()[0], tmp_path / "run", settings(max_steps=2, resume=True)).distil(None, data, objective)
    assert again.history == first.history
    other = 0.5 * Labels().objective(*configs) + Linear(0.0, 2.0) * Labels().objective(*configs)
    with pytest.raises(DistilError, match=r"its code\.objective differs"):
        ReaderTrainer(pair()[0], tmp_path / "run", settings(max_steps=2, resume=True)).distil(None, data, other)


@pytest.mark.parametrize(("weight", "step"), [(Linear(0.0, 1.0), "first"), (Linear(1.0, 0.0), "last")])
def test_a_step_in_which_nothing_is_learnt_is_refused(pair: Callable, data: Path, weight: Linear, step: str) -> None:
    with pytest.raises(DistilError, match=f"all weights of labels are 0 in the {step} step"):
        ReaderTrainer(pair()[0], settings=settings()).distil(None, data, weight * Labels())


@pytest.mark.parametrize(
    "changed",
    [
        {"learning_rate_schedule": "cosine", "optimizer": "adam"},
        {"learning_rate_schedule": "cyclic", "n_cycles": 2, "warmup_proportion": 0.0, "layer_decay": 0.5},
        {"learning_rate_schedule": "constant", "optimizer": "adadelta", "learning_rate": 1.0},
        {"optimizer": "muon", "embedding_learning_rate": 1e-4},
        {"embedding_learning_rate": 1e-5, "head_learning_rate": 1e-2, "projection_learning_rate": 1e-1},
    ],
)
def test_every_optimiser_and_schedule_resumes(
    changed: dict[str, Any], pair: Callable, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = PredictionLayer() + IntermediateLayers(attention_loss_weight=0)
    losses = interrupted_and_resumed(pair, data, tmp_path, monkeypatch, lambda *_: method, **changed)
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({}, (1.0, 0.75, 0.5, 0.25)),
        ({"learning_rate_schedule": "cosine"}, [(1 + math.cos(math.pi * part)) / 2 for part in (0, 0.25, 0.5, 0.75)]),
        ({"learning_rate_schedule": "constant"}, (1.0, 1.0, 1.0, 1.0)),
        ({"learning_rate_schedule": "cyclic", "n_cycles": 2}, (1.0, 0.5, 1.0, 0.5)),
    ],
)
def test_the_shape_of_the_learning_rate(
    changed: dict[str, Any], parts: list[float], pair: Callable, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = []
    compute = _LoopTrainer.compute_loss

    def watching(self: _LoopTrainer, *arguments: Any, **keywords: Any) -> torch.Tensor:
        rates.append(self.optimizer.param_groups[0]["lr"])
        return compute(self, *arguments, **keywords)

    monkeypatch.setattr(_LoopTrainer, "compute_loss", watching)
    chosen = settings(max_steps=4, warmup_proportion=0.0, learning_rate=0.1, **changed)
    ReaderTrainer(pair()[0], settings=chosen).train(data)
    assert rates == pytest.approx([0.1 * part for part in parts])
