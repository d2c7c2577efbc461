"""DevLoss: the mean over labelled windows, of one process and of several."""

import pytest
import torch
from accelerate import PartialState

from haystack_distill.models.outputs import ModelOutputs
from haystack_distill.objectives.labels import label_loss
from haystack_distill.training import dev_loss
from haystack_distill.training.dev_loss import DevLoss

BATCH = {
    "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1]]),
    "start_positions": torch.tensor([2, 1, 0]),
    "end_positions": torch.tensor([2, 0, 0]),
    "labelled": torch.tensor([True, True, False]),
}
START, END = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0))


def test_it_is_the_mean_of_the_labelled_windows() -> None:
    loss = DevLoss(PartialState(cpu=True))
    assert loss.mean() == 0.0
    for rows in (slice(0, 1), slice(1, 3)):
        loss.add({name: tensor[rows] for name, tensor in BATCH.items()}, START[rows], END[rows])
    assert loss.mean() == pytest.approx(label_loss(ModelOutputs(START, END), BATCH)[:2].mean().item())


def test_several_processes_have_one_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two:
        num_processes = 2

    monkeypatch.setattr(dev_loss, "gather_object", lambda own: [*own, (3.0, 1)])
    loss = DevLoss(Two())  # type: ignore[arg-type]
    loss.add(BATCH, START, END)
    expected = (label_loss(ModelOutputs(START, END), BATCH).sum().item() + 3.0) / 3
    assert loss.mean() == pytest.approx(expected)
