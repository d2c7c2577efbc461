"""Sources of data with teachers of their own: each window has its own teacher's targets, or its label alone."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertConfig

from haystack_distill import DistilError, ReaderTrainer, students
from haystack_distill.models.outputs import ModelOutputs
from haystack_distill.objectives import (
    HardTargets,
    IntermediateLayers,
    Labels,
    PredictionLayer,
    SelfDistillation,
    TeacherStudent,
    TripleLoss,
)
from haystack_distill.objectives.method import Method
from haystack_distill.objectives.objective import has_teacher
from haystack_distill.teachers import CachedTeacher, Source, Sources, TeachersByData
from haystack_distill.training.loop import _LoopTrainer
from tests.training.helpers import Killed, MakeReader, kill_at_step, same, settings, weights_of


@pytest.fixture
def unlabelled(tmp_path: Path) -> Path:
    without = {"answers": {"text": [], "answer_start": []}, "labelled": False}
    rows = [
        {"question": f"What number {n}?", "context": f"The number is {n}. " * (1 + n % 3), **without} for n in range(9)
    ]
    path = tmp_path / "unlabelled.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_each_window_has_the_logits_of_its_teacher(
    pair: Callable, tiny_reader: Callable, squad_file: Path, unlabelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, first = pair()
    second = tiny_reader(seed=7)
    sources = Sources([Source(squad_file, first), Source(unlabelled, second), Source(squad_file)])
    batches = []
    compute = _LoopTrainer.compute_loss

    def watching(self, model, inputs, *arguments, **keywords):
        batches.append((self.data.mixture.part_of[inputs["window"].numpy()], {**inputs}))
        return compute(self, model, inputs, *arguments, **keywords)

    monkeypatch.setattr(_LoopTrainer, "compute_loss", watching)
    result = ReaderTrainer(student, None, settings(n_epochs=1)).distil(None, sources, PredictionLayer())
    assert {"loss_distillation", "loss_labels"} <= {name for line in result.history for name in line}
    seen = set()
    for parts, batch in batches:
        assert (has_teacher(batch).numpy() == (parts != 2)).all()
        with torch.no_grad():
            for row, part in enumerate(parts):
                seen.add(int(part))
                scores, inside = batch["teacher_start_logits"][row], batch["context_mask"][row]
                if part == 2:
                    assert (scores[inside] == 0).all()
                    continue
                model = (first, second)[part].model
                names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch]
                own = model(**{name: batch[name][row : row + 1] for name in names}).start_logits[0]
                torch.testing.assert_close(scores[inside], own[inside], rtol=1e-4, atol=1e-4)
                assert torch.isneginf(scores[~inside]).all()
    assert seen == {0, 1, 2}


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (PredictionLayer(), {"distillation": [True, False, False], "labels": [True, True, False]}),
        (TeacherStudent(), {"distillation": [True, False, False], "labels": [True, True, False]}),
        (TripleLoss(cosine_weight=0), {"soft_targets": [True, False, False], "labels": [True, True, False]}),
        (HardTargets(), {"hard_targets": [True, True, False]}),
        (HardTargets(use_labels=False), {"hard_targets": [True, False, False]}),
        (HardTargets(confidence_threshold=1e-6), {"hard_targets": [True, True, False]}),
        (Labels(), {"labels": [True, True, False]}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_term_compares_a_window_without_a_teacher(method: Method, expected: dict[str, list[bool]]) -> None:
    batch = {
        "weight": torch.ones(3),
        "labelled": torch.tensor([True, True, False]),
        "context_mask": torch.ones(3, 4, dtype=torch.bool),
        "teacher_start_logits": torch.zeros(3, 4),
        "teacher_end_logits": torch.zeros(3, 4),
        "has_teacher": torch.tensor([True, False, False]),
    }
    masks = method.objective(BertConfig(), None).masks(batch)
    assert {name: mask.tolist() for name, mask in masks.items()} == expected


@pytest.mark.parametrize("loss", ["kl_div", "mse"])
def test_the_gradient_of_a_window_without_a_teacher(loss: str) -> None:
    """Two windows with the same logits and labels; the second has no teacher, so the gradient of its label alone."""
    objective = PredictionLayer(distillation_loss=loss).objective()  # type: ignore[arg-type]
    logits = torch.tensor([[1.0, -1.0, 0.5]] * 2, requires_grad=True)
    everywhere = torch.ones(2, 3, dtype=torch.bool)
    batch = {
        **{name: torch.zeros(2, dtype=torch.long) for name in ("start_positions", "end_positions")},
        **dict.fromkeys(("attention_mask", "context_mask"), everywhere),
        "weight": torch.ones(2),
        "labelled": torch.ones(2, dtype=torch.bool),
        "has_teacher": torch.tensor([True, False]),
    }
    targets = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    terms = objective(ModelOutputs(logits, logits), ModelOutputs(targets, targets), batch)
    [of_distillation] = torch.autograd.grad(
        terms["distillation"].values.masked_fill(~terms["distillation"].mask, 0.0).sum(), logits, retain_graph=True
    )
    assert of_distillation[0].abs().max() > 0
    assert (of_distillation[1] == 0).all()
    [of_labels] = torch.autograd.grad(terms["labels"].values.sum(), logits)
    expected = torch.softmax(logits.detach(), dim=1) - torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(of_labels, expected)


def test_windows_without_a_teacher_learn_as_from_labels(pair: Callable, squad_file: Path) -> None:
    """Where the only taught source is unlabelled and the soft loss has weight 0, the rest are labels alone."""
    trained = []
    for method, taught in ((PredictionLayer(distillation_loss_weight=0), True), (Labels(), False)):
        student, teacher = pair()
        sources = Sources([Source(squad_file, teacher if taught else None), Source(squad_file)])
        ReaderTrainer(student, None, settings(n_epochs=1)).distil(None, sources, method)
        trained.append(weights_of(student))
    assert same(*trained)


def test_what_learns_from_itself_needs_neither_labels_nor_a_teacher(
    tiny_reader: MakeReader, squad_file: Path, unlabelled: Path
) -> None:
    fast = students.early_exit(tiny_reader(), branch_size=4)
    sources = Sources([Source(unlabelled), Source(squad_file)])
    result = ReaderTrainer(fast, None, settings(n_epochs=1)).distil(None, sources, SelfDistillation())
    assert result.steps
    with pytest.raises(DistilError, match="source 1 has neither a teacher nor labels"):
        ReaderTrainer(tiny_reader(), None, settings(n_epochs=1)).distil(None, sources, Labels())


def test_a_run_with_sources_resumes_bit_for_bit(
    pair: Callable, squad_file: Path, unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(directory: Path, exponent: float = 0.5, **changed) -> dict:
        student, teacher = pair()
        sources = Sources([Source(unlabelled, teacher), Source(squad_file)], exponent)
        trainer = ReaderTrainer(student, directory, settings(n_epochs=1, checkpoint_every=1, **changed))
        trainer.distil(None, sources, HardTargets())
        return weights_of(student)

    whole = run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        kill_at_step(patch, 3)
        with pytest.raises(Killed):
            run(tmp_path / "cut")
    with pytest.raises(DistilError, match="sampling_exponent"):
        run(tmp_path / "cut", 1.0, resume=True)
    assert same(run(tmp_path / "cut", resume=True), whole)


def test_what_does_not_go_with_sources(pair: Callable, squad_file: Path, unlabelled: Path) -> None:
    student, teacher = pair()
    distil = ReaderTrainer(student, None, settings()).distil
    both = Sources([Source(squad_file, teacher), Source(squad_file)])
    with pytest.raises(DistilError, match="two or more"):
        Sources([Source(squad_file, teacher)])
    with pytest.raises(DistilError, match="sampling_exponent"):
        Sources(both.sources, 2.0)
    with pytest.raises(DistilError, match="only logits"):
        distil(None, both, IntermediateLayers())
    with pytest.raises(DistilError, match="set teacher to None"):
        distil(teacher, both, PredictionLayer())
    with pytest.raises(DistilError, match="give them as the data"):
        distil(both, squad_file, PredictionLayer())  # type: ignore[arg-type]
    with pytest.raises(DistilError, match="this method needs no teacher"):
        distil(None, both, Labels())
    with pytest.raises(DistilError, match="give dev_data"):
        distil(None, both, PredictionLayer(), dev_split=0.5)
    with pytest.raises(DistilError, match="needs a teacher"):
        distil(None, Sources([Source(squad_file), Source(squad_file)]), PredictionLayer())
    with pytest.raises(DistilError, match="source 2 has no teacher"):
        distil(None, both, PredictionLayer(distillation_loss_weight=1))
    with pytest.raises(DistilError, match="source 2 has neither"):
        distil(None, Sources([Source(squad_file, teacher), Source(unlabelled)]), PredictionLayer())
    with pytest.raises(DistilError, match="give `Sources` as the data"):
        distil(TeachersByData([CachedTeacher(teacher), None]), squad_file, PredictionLayer())
    cached = CachedTeacher(teacher)
    with pytest.raises(DistilError, match="one Teacher object"):
        distil(None, Sources([Source(squad_file, cached), Source(unlabelled, cached)]), PredictionLayer())
