"""Weights as one file: tied ones once, parts of one storage each by itself."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from haystack_distill import Reader, ReaderTrainer, TrainingSettings, students
from haystack_distill.objectives import PredictionLayer
from haystack_distill.training.adaptation import LastLayers
from haystack_distill.utils.weights import load_weights, save_weights
from tests.training.helpers import Killed, kill_at_loss


def in_one_storage(model: nn.Module) -> None:
    """Put the weights of each LSTM into one storage, as PyTorch does on a GPU."""
    for module in model.modules():
        if isinstance(module, nn.LSTM):
            storage = torch.cat([weight.detach().flatten() for weight in module.parameters()])
            for weight, part in zip(
                module.parameters(), storage.split([w.numel() for w in module.parameters()]), strict=True
            ):
                weight.data = part.view_as(weight)


class Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(3, 4)
        self.second.weight = self.first.weight
        self.lstm = nn.LSTM(4, 5)
        self.register_buffer("seen", torch.tensor(3))
        self.turned = nn.Parameter(torch.randn(3, 5).T)
        in_one_storage(self)


def test_round_trip(tmp_path: Path) -> None:
    module, other = Module(), Module()
    save_weights(module, tmp_path / "weights")
    written = load_file(tmp_path / "weights")
    assert len(written) == len(module.state_dict()) - 1
    load_weights(other, tmp_path / "weights")
    for name, weight in module.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name])
    assert other.second.weight is other.first.weight


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    module = Module()
    save_weights(module, tmp_path / "weights")
    module.more = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match=r"missing weights \['more\.weight', 'more\.bias'\]"):
        load_weights(module, tmp_path / "weights")
    save_weights(module, tmp_path / "weights")
    with pytest.raises(RuntimeError, match=r"unexpected weights \['more"):
        load_weights(Module(), tmp_path / "weights")
    module = Module()
    module.second.weight = nn.Parameter(torch.zeros(4, 3))  # the file has one weight for both
    save_weights(Module(), tmp_path / "weights")
    with pytest.raises(RuntimeError, match="missing weights"):
        load_weights(module, tmp_path / "weights")


def test_a_recurrent_reader_of_a_gpu_is_saved(tiny_reader: Callable[..., Reader], tmp_path: Path) -> None:
    reader = students.bilstm(tiny_reader(), embedding_size=12, units=8)
    in_one_storage(reader.model)
    again = Reader.load(reader.save(tmp_path / "reader"))
    for name, weight in reader.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name]), name


@pytest.mark.parametrize("adaptation", [None, LastLayers(save_only_trained=True)])
def test_its_training_resumes(
    adaptation: LastLayers | None,
    tiny_reader: Callable[..., Reader],
    squad_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher = tiny_reader()
    students.bilstm(teacher, embedding_size=12, units=8).save(tmp_path / "start")

    def run(name: str, stop_after: int | None = None) -> dict[str, torch.Tensor]:
        student = Reader.load(tmp_path / "start")
        in_one_storage(student.model)
        settings = TrainingSettings(
            max_steps=4, batch_size=2, checkpoint_every=2, resume=True, progress=False, precision="fp32"
        )
        trainer = ReaderTrainer(student, tmp_path / name, settings)
        if stop_after is not None:
            with monkeypatch.context() as patch:
                kill_at_loss(patch, stop_after)
                with pytest.raises(Killed):
                    trainer.distil(teacher, squad_file, PredictionLayer(), adaptation=adaptation)
            return {}
        trainer.distil(teacher, squad_file, PredictionLayer(), adaptation=adaptation)
        return Reader.load(tmp_path / name).model.state_dict()

    whole = run("whole")
    run("resumed", stop_after=3)
    assert list((tmp_path / "resumed" / "checkpoints").glob("checkpoint-2"))
    resumed = run("resumed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
