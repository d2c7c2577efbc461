"""Every registered adaptation: what costs gradients and optimiser state, resumed runs, the model that is left."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import TrainerCallback

from haystack_distill import Reader, ReaderTrainer, RunResult
from haystack_distill.models.adapters import adapters_of
from haystack_distill.objectives import IntermediateLayers, PredictionLayer
from haystack_distill.training.adaptation import ADAPTATIONS, Adaptation
from tests.training.helpers import Killed, kill_at_step, logged, same, settings, weights_of

Pair = Callable[[], tuple[Reader, Reader]]
METHOD = PredictionLayer(temperature=2.0) + 0.1 * IntermediateLayers()


@pytest.fixture(params=ADAPTATIONS)
def adaptation(request: pytest.FixtureRequest) -> Adaptation:
    """Each adaptation with its default options."""
    made: Adaptation = ADAPTATIONS[request.param]()
    return made


class Watch(TrainerCallback):
    """For each step the weights with a gradient and those with optimiser state, among those of the student."""

    def __init__(self) -> None:
        self.trained: list[set[str]] = []
        self.held: list[set[str]] = []
        self.trainable: list[set[str]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        named = dict(given["model"].student.named_parameters())
        self.trained.append({name for name, parameter in named.items() if parameter.grad is not None})
        self.trainable.append({name for name, parameter in named.items() if parameter.requires_grad})

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        names = {parameter: name for name, parameter in given["model"].student.named_parameters()}

        def hold(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            self.held.append({names[parameter] for parameter in optimizer.state if parameter in names})

        self.handle = register_optimizer_step_post_hook(hold)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.handle.remove()


def run(
    adaptation: Adaptation, pair: Pair, data: Path, output: Path | None, *watching: TrainerCallback, **changed: object
) -> tuple[Reader, RunResult]:
    student, teacher = pair()
    trainer = ReaderTrainer(student, output, settings(**changed), cache_dir=data.parent / "cache")
    return student, trainer.distil(teacher, data, METHOD, adaptation=adaptation, callbacks=watching)


def test_frozen_weights_cost_neither_gradient_nor_optimiser_state(
    adaptation: Adaptation, pair: Pair, data: Path
) -> None:
    watch = Watch()
    student, _ = run(adaptation, pair, data, None, watch, max_steps=4)
    assert watch.trained == watch.trainable == watch.held
    assert watch.trained[0]
    if ADAPTATIONS.name_of(adaptation) in ("all", "quantisation_aware"):
        assert watch.trained[0] == {name for name, _ in student.model.named_parameters()}
    else:
        total = sum(parameter.numel() for parameter in student.model.parameters())
        assert (
            sum(student.model.get_parameter(name).numel() for name in watch.trained[0] & weights_of(student).keys())
            < total
        )
    assert all(parameter.requires_grad for parameter in student.model.parameters())


def test_an_interrupted_run_ends_with_the_same_bits(
    adaptation: Adaptation, pair: Pair, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {"max_steps": 7, "checkpoint_every": 2, "dropout": 0.1}
    whole, expected = run(adaptation, pair, data, tmp_path / "whole", **changed)
    student, teacher = pair()
    trainer = ReaderTrainer(student, tmp_path / "run", settings(**changed), cache_dir=data.parent / "cache")
    with monkeypatch.context() as patch:
        kill_at_step(patch, 5)
        with pytest.raises(Killed):
            trainer.distil(teacher, data, METHOD, adaptation=adaptation)
    resuming = settings(**changed, resume=True)
    for resumed in (student, pair()[0]):  # the half-trained student itself; and, as it has finished then, another one
        trainer = ReaderTrainer(resumed, tmp_path / "run", resuming, cache_dir=data.parent / "cache")
        result = trainer.distil(teacher, data, METHOD, adaptation=adaptation)
        assert same(weights_of(resumed), weights_of(whole))
        assert logged(result, "loss") == logged(expected, "loss")


def test_what_is_left_answers_as_the_adapted_model(adaptation: Adaptation, pair: Pair, data: Path) -> None:
    seen = {}

    class Last(TrainerCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            model = given["model"].student.eval()
            with torch.no_grad():
                seen["logits"] = model(**batch).start_logits

    student, _ = pair()
    batch = dict(student.tokenizer("Who wrote it?", "Ada wrote it in 1843.", return_tensors="pt"))
    student, _ = run(adaptation, pair, data, None, Last(), max_steps=3, learning_rate=1e-2)
    # What was trained with rounded values is left without the rounding.
    atol = 1e-2 if ADAPTATIONS.name_of(adaptation) == "quantisation_aware" else 1e-5
    with torch.no_grad():
        torch.testing.assert_close(student.model(**batch).start_logits, seen["logits"], rtol=0, atol=atol)
    plain = {name for name, _ in pair()[0].model.named_parameters()}
    if adapters_of(student.model):
        assert plain < weights_of(student).keys()
    else:
        assert plain <= weights_of(student).keys()
        assert type(student.model.bert.encoder.layer[0].attention.self.query) is torch.nn.Linear
