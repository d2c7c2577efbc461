"""Training with a transfer set: its windows are in every step, without labels, and a run resumes bit for bit."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from haystack_distill import DistilError, ReaderTrainer
from haystack_distill.data.transfer import TransferSet
from haystack_distill.objectives import Labels, PredictionLayer
from haystack_distill.training.loop import _LoopTrainer
from tests.training.helpers import Killed, kill_at_step, same, settings, weights_of


@pytest.fixture
def transfer(squad_file: Path, tmp_path: Path) -> TransferSet:
    rows = [{"question": f"What number {n}?", "context": f"The number is {n}. " * (1 + n % 3)} for n in range(9)]
    path = tmp_path / "transfer.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return TransferSet(path)


def test_every_step_has_labelled_and_unlabelled_windows(
    pair: Callable, data: Path, transfer: TransferSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher = pair()
    batches = []
    compute = _LoopTrainer.compute_loss

    def watching(self, model, inputs, *arguments, **keywords):
        batches.append({name: inputs[name].clone() for name in ("labelled", "window", "teacher_start_logits")})
        return compute(self, model, inputs, *arguments, **keywords)

    monkeypatch.setattr(_LoopTrainer, "compute_loss", watching)
    result = ReaderTrainer(student, None, settings(n_epochs=1)).distil(
        teacher, data, PredictionLayer(), transfer=transfer
    )
    assert result.steps == len(batches)
    for batch in batches[:-1]:
        assert 1 <= int(batch["labelled"].sum()) <= 3
    drawn = torch.cat([batch["window"] for batch in batches])
    labelled = torch.cat([batch["labelled"] for batch in batches])
    assert len(drawn[labelled].unique()) == int(labelled.sum())
    assert int((~labelled).sum()) >= int(labelled.sum())  # half and half; some of `data` is unlabelled too
    assert all(torch.isfinite(batch["teacher_start_logits"]).any(dim=1).all() for batch in batches)


def test_a_transfer_set_has_no_held_out_articles(pair: Callable, squad_file: Path, tmp_path: Path) -> None:
    content = json.loads(squad_file.read_text())
    content["data"] = [
        {"title": f"{number}", "paragraphs": [one]} for number, one in enumerate(content["data"][0]["paragraphs"])
    ]
    squad_file.write_text(json.dumps(content))
    student, teacher = pair()
    trainer = ReaderTrainer(student, tmp_path / "run", settings(max_steps=1))
    trainer.distil(teacher, squad_file, PredictionLayer(), dev_split=0.25, transfer=TransferSet(squad_file))
    record = json.loads((tmp_path / "run/haystack_distill.json").read_text())
    assert record["transfer"]["examples"] * 2 == record["data"]["examples"] < 2 * 8


def test_a_run_with_a_transfer_set_resumes_bit_for_bit(
    pair: Callable, data: Path, transfer: TransferSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(directory: Path, transfer: TransferSet = transfer, **changed) -> dict:
        student, teacher = pair()
        trainer = ReaderTrainer(student, directory, settings(n_epochs=2, checkpoint_every=1, **changed))
        trainer.distil(teacher, data, PredictionLayer(), transfer=transfer)
        return weights_of(student)

    whole = run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        kill_at_step(patch, 13)
        with pytest.raises(Killed):
            run(tmp_path / "cut")
    other = TransferSet(transfer.data, proportion=0.25)
    with pytest.raises(DistilError, match="transfer"):
        run(tmp_path / "cut", other, resume=True)
    assert same(run(tmp_path / "cut", resume=True), whole)


def test_a_transfer_set_needs_something_to_learn_from(pair: Callable, data: Path, transfer: TransferSet) -> None:
    student, teacher = pair()
    trainer = ReaderTrainer(student, None, settings())
    with pytest.raises(DistilError, match="transfer set would have no effect"):
        trainer.distil(None, data, Labels(), transfer=transfer)
    with pytest.raises(DistilError, match="transfer"):
        trainer.distil(teacher, data, PredictionLayer(), transfer="data.json")  # type: ignore[arg-type]


def test_a_transfer_set_has_nothing_of_the_articles_that_are_held_out(
    pair: Callable, squad_file: Path, tmp_path: Path
) -> None:
    content = json.loads(squad_file.read_text())
    paragraphs = enumerate(content["data"][0]["paragraphs"])
    articles = [{"title": f"{number}", "paragraphs": [paragraph]} for number, paragraph in paragraphs]
    squad_file.write_text(json.dumps({"version": "v2.0", "data": articles}))
    student, teacher = pair()
    trainer = ReaderTrainer(student, tmp_path / "run", settings(max_steps=1))
    transfer = TransferSet(squad_file)  # the training data once more
    trainer.distil(teacher, squad_file, PredictionLayer(), dev_split=0.25, transfer=transfer)
    record = json.loads((tmp_path / "run" / "haystack_distill.json").read_text())
    assert record["data"]["examples"] == 2 * record["transfer"]["examples"]
