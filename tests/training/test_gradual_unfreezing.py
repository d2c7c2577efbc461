"""gradual_unfreezing: which weights are trained in which step, and phases that end early."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AlbertConfig, AlbertForQuestionAnswering, TrainerCallback

from haystack_distill import DistilError, Reader, ReaderTrainer
from haystack_distill.training.adaptation import adapted
from haystack_distill.training.gradual_unfreezing import GradualUnfreezing, phase_at
from tests.training.helpers import Killed, kill_at_step, settings
from tests.training.test_every_adaptation import Watch

MakeReader = Callable[..., Reader]


def test_phases_by_their_shares() -> None:
    assert [phase_at(step, 10, [0.5, 0.3, 0.2]) for step in range(12)] == [0] * 5 + [1] * 3 + [2] * 4
    assert [phase_at(step, 10, [0.1] * 10) for step in range(10)] == list(range(10))
    assert [phase_at(step, 2, [0.25] * 4) for step in range(2)] == [0, 2]  # more phases than steps


def test_a_phase_ends_when_the_score_stands_still() -> None:
    shares, scores = [0.5, 0.3, 0.2], [(2, 40.0), (4, 40.0), (6, 30.0), (8, 50.0)]
    seen = [phase_at(step, 20, shares, [one for one in scores if one[0] <= step], 1) for step in range(20)]
    # The second evaluation is no better: phase 1 has its own 6 steps from there, and its scores are compared anew.
    assert seen == [0] * 4 + [1] * 6 + [2] * 10
    assert [phase_at(step, 20, shares, scores, 2) for step in (5, 6, 11, 12)] == [0, 1, 1, 2]


def test_the_weights_of_each_step(tiny_reader: MakeReader, data: Path) -> None:
    student, watch = tiny_reader(), Watch()
    names = {name for name, _ in student.model.named_parameters()}
    head = {name for name in names if name.startswith("qa_outputs")}
    last = {name for name in names if ".layer.2." in name or ".layer.3." in name}
    layers = {name for name in names if ".layer." in name}
    adaptation = GradualUnfreezing(layers_per_phase=2, phase_shares=[0.4, 0.2, 0.2, 0.2])
    trainer = ReaderTrainer(student, None, settings(max_steps=5))
    trainer.distil(None, data, "labels", adaptation=adaptation, callbacks=[watch])
    assert watch.trained == [head, head, head | last, head | layers, names]


@pytest.mark.parametrize(
    ("steps", "shares", "missed"), [(10, [0.5, 0.45, 0.05], 1), (2, [0.5, 0.3, 0.2], 1), (10, [0.5, 0.4, 0.1], 0)]
)
def test_a_phase_that_never_begins(
    steps: int,
    shares: list[float],
    missed: int,
    tiny_reader: MakeReader,
    data: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    adaptation = GradualUnfreezing(layers_per_phase=4, phase_shares=shares)
    student = tiny_reader()
    before = student.model.bert.embeddings.word_embeddings.weight.detach().clone()
    ReaderTrainer(student, None, settings(max_steps=steps)).distil(None, data, "labels", adaptation=adaptation)
    assert (f"in {steps} steps the last {missed} of 3 phases do not begin" in caplog.text) == bool(missed)
    assert torch.equal(student.model.bert.embeddings.word_embeddings.weight, before) == bool(missed)


def test_a_phase_ends_early_in_a_run(tiny_reader: MakeReader, data: Path) -> None:
    watch, adaptation = Watch(), GradualUnfreezing(layers_per_phase=4, phase_shares=[0.8, 0.1, 0.1], phase_patience=1)
    chosen = settings(max_steps=10, evaluate_every=2, learning_rate=1e-9)  # no evaluation is better than the first
    trainer = ReaderTrainer(tiny_reader(), None, chosen)
    trainer.distil(None, data, "labels", data, adaptation=adaptation, callbacks=[watch])
    sizes = [len(names) for names in watch.trained]
    assert sizes.count(sizes[0]) == 4
    assert sizes[4] < sizes[5] == sizes[9]


def test_phases_follow_the_figure_that_decides_the_best(
    tiny_reader: MakeReader, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F1 rises and the loss stands still: phases end early only in a run that goes by the loss."""
    begun = {}
    for best_by in ("f1", "loss"):
        f1 = iter(range(100))
        monkeypatch.setattr(
            ReaderTrainer, "_evaluate", lambda *_, f1=f1: {"exact": 0.0, "f1": float(next(f1)), "loss": 2.0}
        )
        watch = Watch()
        adaptation = GradualUnfreezing(layers_per_phase=4, phase_shares=[0.5, 0.3, 0.2], phase_patience=1)
        trainer = ReaderTrainer(tiny_reader(), None, settings(max_steps=10, evaluate_every=1, best_by=best_by))
        trainer.distil(None, data, "labels", data, adaptation=adaptation, callbacks=[watch])
        sizes = [len(names) for names in watch.trained]
        begun[best_by] = [sizes.index(size) for size in sorted(set(sizes))]
    assert begun == {"f1": [0, 5, 8], "loss": [0, 2, 4]}


class Heads(TrainerCallback):
    """The head's weights before and after each step."""

    def __init__(self) -> None:
        self.before: dict[int, torch.Tensor] = {}
        self.after: dict[int, torch.Tensor] = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.before[state.global_step] = given["model"].student.qa_outputs.weight.detach().clone()

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.after[state.global_step] = given["model"].student.qa_outputs.weight.detach().clone()


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """F1 is best after the first step, and the same whenever a run is resumed."""

    def evaluate(self: ReaderTrainer, *_: Any) -> dict[str, float]:
        return {"exact": 0.0, "f1": 9.0 if torch.equal(head_of(self.student), first[0]) else 1.0, "loss": 2.0}

    def head_of(reader: Reader) -> torch.Tensor:
        head = reader.model.qa_outputs.weight.detach().clone()
        first.append(head)
        return head

    first: list[torch.Tensor] = []
    monkeypatch.setattr(ReaderTrainer, "_evaluate", evaluate)


@pytest.mark.usefixtures("scores")
def test_a_phase_begins_with_the_best_weights(tiny_reader: MakeReader, data: Path) -> None:
    adaptation = GradualUnfreezing(layers_per_phase=4, phase_shares=[0.4, 0.3, 0.3])
    for keep_best in (True, False):
        heads = Heads()
        trainer = ReaderTrainer(tiny_reader(), None, settings(max_steps=10, evaluate_every=1, keep_best=keep_best))
        trainer.distil(None, data, "labels", data, adaptation=adaptation, callbacks=[heads])
        begun_anew = {step for step in range(1, 10) if not torch.equal(heads.before[step], heads.after[step])}
        assert begun_anew == ({4, 7} if keep_best else set())
        if keep_best:
            assert torch.equal(heads.before[4], heads.after[1])
            assert torch.equal(heads.before[7], heads.after[1])


@pytest.mark.usefixtures("scores")
@pytest.mark.parametrize("step", [4, 5, 7, 9])
def test_it_does_so_in_a_resumed_run_too(
    step: int, tiny_reader: MakeReader, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adaptation = GradualUnfreezing(layers_per_phase=4, phase_shares=[0.4, 0.3, 0.3])
    changed = {"max_steps": 10, "evaluate_every": 1, "keep_best": True, "dropout": 0.1}
    whole = Heads()
    trainer = ReaderTrainer(tiny_reader(), tmp_path / "whole", settings(**changed), cache_dir=tmp_path / "cache")
    trainer.distil(None, data, "labels", data, adaptation=adaptation, callbacks=[whole])
    again = Heads()
    with monkeypatch.context() as patch:
        kill_at_step(patch, step)
        trainer = ReaderTrainer(tiny_reader(), tmp_path / "run", settings(**changed), cache_dir=tmp_path / "cache")
        with pytest.raises(Killed):
            trainer.distil(None, data, "labels", data, adaptation=adaptation)
    resuming = settings(**changed, resume=True)
    trainer = ReaderTrainer(tiny_reader(), tmp_path / "run", resuming, cache_dir=tmp_path / "cache")
    trainer.distil(None, data, "labels", data, adaptation=adaptation, callbacks=[again])
    assert again.after
    assert all(torch.equal(head, whole.after[number]) for number, head in again.after.items())


def test_the_end_of_each_phase_is_evaluated(
    tiny_reader: MakeReader, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise phases between two evaluations would all begin with the weights of the first."""
    f1 = iter(range(100))
    monkeypatch.setattr(ReaderTrainer, "_evaluate", lambda *_: {"exact": 0.0, "f1": float(next(f1)), "loss": 2.0})
    adaptation, heads = GradualUnfreezing(layers_per_phase=1), Heads()  # six phases of two steps
    trainer = ReaderTrainer(tiny_reader(), None, settings(max_steps=12, evaluate_every=12, keep_best=True))
    result = trainer.distil(None, data, "labels", data, adaptation=adaptation, callbacks=[heads])
    assert [line["step"] for line in result.history if "eval_f1" in line] == [2, 4, 6, 8, 10, 12]
    assert all(torch.equal(heads.before[step], heads.after[step]) for step in range(1, 12))


def test_a_run_stops_early_in_its_last_phase_only(
    tiny_reader: MakeReader, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReaderTrainer, "_evaluate", lambda *_: {"exact": 0.0, "f1": 1.0, "loss": 2.0})
    for patience, steps in ((None, 8 + 3), (2, 3 + 3 + 3)):  # phases of 4 steps, or of 3: until two were no better
        watch = Watch()
        adaptation = GradualUnfreezing(4, phase_shares=[0.2, 0.2, 0.6], phase_patience=patience)
        chosen = settings(max_steps=20, evaluate_every=1, keep_best=True, early_stopping_patience=2)
        trainer = ReaderTrainer(tiny_reader(), None, chosen)
        trainer.distil(None, data, "labels", data, adaptation=adaptation, callbacks=[watch])
        assert len(watch.trained) == steps
        assert len({len(names) for names in watch.trained}) == 3


def test_what_does_not_fit(tiny_reader: MakeReader, data: Path) -> None:
    for wrong in ([0.5, 0.2], [1.5, -0.5], "half", []):
        with pytest.raises(DistilError, match="phase_shares must be"):
            GradualUnfreezing(phase_shares=wrong)
    with pytest.raises(DistilError, match="layers_per_phase must be"):
        GradualUnfreezing(0)
    with pytest.raises(DistilError, match="phase_patience must be"):
        GradualUnfreezing(phase_patience=0)
    student = tiny_reader()
    with pytest.raises(DistilError, match="phase_shares has 2 entries, but there are 6 phases"):
        ReaderTrainer(student).distil(None, data, "labels", adaptation=GradualUnfreezing(phase_shares=[0.5, 0.5]))
    with pytest.raises(DistilError, match="phase_patience has no effect where the student is not evaluated"):
        ReaderTrainer(student).distil(None, data, "labels", adaptation=GradualUnfreezing(phase_patience=2))
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    albert = AlbertForQuestionAnswering(AlbertConfig(vocab_size=30, embedding_size=8, **shape))
    with pytest.raises(DistilError, match="albert model share their weights"), adapted(albert, GradualUnfreezing()):
        pass
