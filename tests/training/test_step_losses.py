"""The losses between two lines of the log: sums, the check for numbers, and that nothing is read from a device."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from haystack_distill import ReaderTrainer, TrainingSettings
from haystack_distill.errors import DistilError
from haystack_distill.objectives.intermediate_layers import IntermediateLayers
from haystack_distill.objectives.labels import Labels
from haystack_distill.objectives.method import Method
from haystack_distill.objectives.prediction_layer import PredictionLayer
from haystack_distill.training.loop import _LoopTrainer
from haystack_distill.training.step_losses import StepLosses

_READS = ("item", "tolist", "numpy", "__bool__", "__float__", "__int__", "cpu")


def _losses(at_once: bool) -> StepLosses:
    made = StepLosses(torch.device("cpu" if at_once else "meta"), lambda windows: f"the windows {windows}")
    assert made.at_once is at_once
    return made


@pytest.mark.parametrize("at_once", [True, False])
def test_means_are_those_of_all_batches_also_in_a_resumed_run(at_once: bool) -> None:
    losses = _losses(at_once)
    windows = torch.tensor([4, 7])
    losses.begin_step(["labels"])
    losses.add(1, {"labels": torch.tensor(0.5)}, torch.tensor(0.5), windows)
    losses.begin_step(["labels", "hidden"])
    losses.add(2, {"labels": torch.tensor(1.5), "hidden": torch.tensor(2.0)}, torch.tensor(3.5), windows)
    assert losses.means() == losses.means() == {"loss": 2.0, "loss_labels": 1.0, "loss_hidden": 2.0}
    resumed = _losses(at_once)
    resumed.restore(json.loads(json.dumps(losses.state())))
    for each in (losses, resumed):
        each.begin_step(["labels"])
        each.add(3, {"labels": torch.tensor(4.0)}, torch.tensor(2.0), windows)
        assert each.means() == {"loss": 2.0, "loss_labels": 2.0, "loss_hidden": 2.0}
        each.clear()
        assert each.means() == {}


def test_a_loss_that_is_no_number_is_found_in_the_step_of_its_batch() -> None:
    bad = {"labels": torch.tensor(float("nan"))}
    with pytest.raises(DistilError, match=r"the loss is nan at step 3 \(labels nan\) on the windows \[4\]; lower"):
        _losses(at_once=True).add(3, bad, bad["labels"], torch.tensor([4]))
    later = _losses(at_once=False)
    later.add(3, bad, bad["labels"], torch.tensor([4]))
    later.add(4, {"labels": torch.tensor(1.0)}, torch.tensor(1.0), torch.tensor([5]))
    with pytest.raises(DistilError, match=r"at step 3 \(labels nan\) on the windows \[4\]"):
        later.read()


@pytest.fixture
def on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop reads losses as if they were on a GPU."""
    made = StepLosses.__init__

    def deferred(self: StepLosses, *arguments: Any) -> None:
        made(self, *arguments)
        self.at_once = False

    monkeypatch.setattr(StepLosses, "__init__", deferred)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The reads of tensors by this package within training steps, after the first one, in which objectives are checked."""
    found: list[str] = []
    inside = [False]
    for name in _READS:
        original = getattr(Tensor, name)

        def counted(self: Tensor, *arguments: Any, _name: str = name, _original: Any = original, **named: Any) -> Any:
            reader = sys._getframe(1).f_code.co_filename
            # transformers looks itself whether a mask hides anything; the modes in utils only pass calls on.
            if inside[0] and "haystack_distill" in reader and "utils" not in reader:
                found.append(f"{_name} in {reader}")
            return _original(self, *arguments, **named)

        monkeypatch.setattr(Tensor, name, counted)
    step = _LoopTrainer.training_step

    def watched(self: _LoopTrainer, model: nn.Module, *arguments: Any, **named: Any) -> Tensor:
        inside[0] = self.state.global_step > 0
        try:
            return step(self, model, *arguments, **named)
        finally:
            inside[0] = False

    monkeypatch.setattr(_LoopTrainer, "training_step", watched)
    return found


@pytest.mark.usefixtures("on_a_device")
@pytest.mark.parametrize(
    "method", [Labels(), PredictionLayer(), IntermediateLayers(), 0.5 * PredictionLayer() + Labels()]
)
def test_a_step_reads_nothing_from_the_device(pair: Callable, data: Path, method: Method, reads: list[str]) -> None:
    student, teacher = pair()
    chosen = TrainingSettings(max_steps=4, batch_size=2, progress=False, checkpoint_every=None, log_every=2)
    result = ReaderTrainer(student, None, chosen).distil(None if method == Labels() else teacher, data, method)
    assert reads == []
    assert len([line for line in result.history if "loss" in line]) == 2


def test_the_log_is_the_same(pair: Callable, data: Path, request: pytest.FixtureRequest) -> None:
    chosen = TrainingSettings(max_steps=5, batch_size=2, progress=False, checkpoint_every=None, log_every=2)
    histories = []
    for fixture in (None, "on_a_device"):
        if fixture:
            request.getfixturevalue(fixture)
        student, teacher = pair()
        history = ReaderTrainer(student, None, chosen).distil(teacher, data, PredictionLayer()).history
        histories.append([{key: line[key] for key in line if key.startswith("loss")} for line in history])
    assert histories[0] == histories[1]


@pytest.mark.usefixtures("on_a_device")
def test_no_checkpoint_follows_a_loss_that_is_no_number(
    pair: Callable, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, _ = pair()
    whole = _LoopTrainer.compute_loss

    def poisoned(self: _LoopTrainer, *arguments: Any, **named: Any) -> Tensor:
        if self.state.global_step == 2:
            nn.init.constant_(student.model.qa_outputs.bias, float("nan"))
        return whole(self, *arguments, **named)

    monkeypatch.setattr(_LoopTrainer, "compute_loss", poisoned)
    chosen = TrainingSettings(max_steps=4, batch_size=2, progress=False, checkpoint_every=1, log_every=100)
    with pytest.raises(DistilError, match="the loss is nan at step 3"):
        ReaderTrainer(student, tmp_path / "run", chosen).train(data)
    assert not (tmp_path / "run" / "checkpoints" / "checkpoint-3").exists()
