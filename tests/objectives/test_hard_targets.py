"""hard_targets: the teacher's spans, whose label counts, the threshold, and what is refused."""

import json
import logging
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from haystack_distill import Reader, ReaderTrainer, TrainingSettings
from haystack_distill.errors import DistilError
from haystack_distill.objectives import HardTargets, IntermediateLayers, Labels, ModelOutputs
from haystack_distill.objectives.hard_targets import teacher_spans
from haystack_distill.utils.model_fingerprint import model_fingerprint

INF = float("inf")
# Position 0 is the no-answer, 1 the question, the context begins at 2; the second window ends in padding.
CONTEXT = torch.tensor([[1, 0, 1, 1, 1], [1, 0, 1, 1, 0]], dtype=torch.bool)
START = torch.tensor([[0.0, 9.0, 1.0, 3.0, -INF], [4.0, 9.0, 1.0, 0.0, 9.0]])
END = torch.tensor([[0.0, 9.0, 2.0, 1.0, 3.0], [4.0, 9.0, 0.0, 1.0, 9.0]])
BATCH = {
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]),
    "context_mask": CONTEXT,
    "start_positions": torch.tensor([2, -1]),
    "end_positions": torch.tensor([2, -1]),
    "labelled": torch.tensor([True, False]),
    "weight": torch.ones(2),
    "teacher_start_logits": START,
    "teacher_end_logits": END,
}
TEACHER = ModelOutputs(START, END)


def student() -> ModelOutputs:
    generator = torch.Generator().manual_seed(0)
    return ModelOutputs(*(torch.randn(2, 5, generator=generator).requires_grad_() for _ in range(2)))


def cross_entropy(logits: torch.Tensor, position: int, length: int) -> float:
    return float(logits[:length].logsumexp(0) - logits[position])


def test_the_teachers_spans_by_hand() -> None:
    spans = teacher_spans(START, END, CONTEXT, 30)
    assert spans.start.tolist() == [3, 0]
    assert spans.end.tolist() == [4, 0]  # the second window has no answer: 4 + 4 is more than 1 + 1
    first = math.exp(3 + 3) / (sum(map(math.exp, [0, 1, 3])) * sum(map(math.exp, [0, 2, 1, 3])))
    second = math.exp(4 + 4) / (sum(map(math.exp, [4, 1, 0])) * sum(map(math.exp, [4, 0, 1])))
    assert spans.probability.tolist() == pytest.approx([first, second])
    short = teacher_spans(START, END, CONTEXT, 1)
    assert (short.start[0], short.end[0]) == (3, 3)  # 3 + 1 beats 1 + 2
    backwards = teacher_spans(START.flip(0), END.flip(1).flip(0), CONTEXT[[0, 0]], 30)
    assert bool((backwards.start <= backwards.end).all())


def test_labelled_windows_learn_their_label_and_others_the_teachers_span() -> None:
    outputs = student()
    term = HardTargets().objective()(outputs, TEACHER, BATCH)["hard_targets"]
    logits = [(outputs.start_logits[row], outputs.end_logits[row]) for row in range(2)]
    label = (cross_entropy(logits[0][0], 2, 5) + cross_entropy(logits[0][1], 2, 5)) / 2
    pseudo = (cross_entropy(logits[1][0], 0, 4) + cross_entropy(logits[1][1], 0, 4)) / 2
    assert term.values.tolist() == pytest.approx([label, pseudo])
    assert term.mask.tolist() == [True, True]
    everywhere = HardTargets(use_labels=False).objective()(outputs, TEACHER, BATCH)["hard_targets"].values
    span = (cross_entropy(logits[0][0], 3, 5) + cross_entropy(logits[0][1], 4, 5)) / 2
    assert everywhere.tolist() == pytest.approx([span, pseudo])


def test_where_the_gradient_goes() -> None:
    outputs = student()
    teacher = ModelOutputs(START.clone().requires_grad_(), END.clone().requires_grad_())
    HardTargets().objective()(outputs, teacher, BATCH)["hard_targets"].values.sum().backward()
    assert teacher.start_logits.grad is None
    assert teacher.end_logits.grad is None
    for logits in (outputs.start_logits, outputs.end_logits):
        assert logits.grad.isfinite().all()
        assert logits.grad[1, :4].abs().min() > 0
        assert logits.grad[1, 4] == 0  # padding


def test_a_threshold_leaves_out_what_the_teacher_is_unsure_of() -> None:
    probabilities = teacher_spans(START, END, CONTEXT, 30).probability.tolist()
    assert probabilities[0] < 0.7 < probabilities[1] < 0.9
    for threshold, use_labels, expected in [
        (0.7, True, [True, True]),
        (0.95, True, [True, False]),
        (0.7, False, [False, True]),
    ]:
        objective = HardTargets(use_labels, threshold).objective()
        assert objective.masks(BATCH)["hard_targets"].tolist() == expected
        assert objective(student(), TEACHER, BATCH)["hard_targets"].mask.tolist() == expected
        assert (objective + Labels().objective(None)).reads_cached_logits
    live = {name: value for name, value in BATCH.items() if not name.startswith("teacher")}
    assert HardTargets().objective().masks(live)["hard_targets"].all()
    with pytest.raises(DistilError, match="confidence_threshold needs cached teacher logits"):
        HardTargets(confidence_threshold=0.5).objective().masks(live)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence_threshold": 1.5}, "confidence_threshold must be a number between 0 and 1, or None, not 1.5"),
        ({"max_span_length": 0}, "max_span_length must be a whole number"),
        ({"use_labels": 1}, "use_labels must be True or False"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(DistilError, match=message):
        HardTargets(**options)


@pytest.fixture
def transfer_set(squad_file: Path, tmp_path: Path) -> Path:
    """The questions, every second one without a label."""
    content = json.loads(squad_file.read_text())
    questions = [qa for paragraph in content["data"][0]["paragraphs"] for qa in paragraph["qas"]]
    for qa in questions[::2]:
        qa |= {"labelled": False, "answers": []}
    path = tmp_path / "transfer.json"
    path.write_text(json.dumps(content))
    return path


def test_a_run(tiny_reader: Callable[..., Reader], squad_file: Path, transfer_set: Path) -> None:
    def run(data: Path, method: object, teacher: object) -> list[float]:
        student = tiny_reader(seed=1, num_hidden_layers=1)
        settings = TrainingSettings(max_steps=1, batch_size=8, progress=False, log_every=1)
        result = ReaderTrainer(student, settings=settings).distil(teacher, data, method)
        return [line["loss_hard_targets"] for line in result.history if "loss_hard_targets" in line]

    teacher = tiny_reader(seed=0, num_hidden_layers=1, initializer_range=0.4)
    all_windows = run(transfer_set, HardTargets(), teacher)
    confident = run(transfer_set, HardTargets(confidence_threshold=0.05), teacher)
    assert all(map(math.isfinite, [*all_windows, *confident]))
    assert all_windows != confident
    with pytest.raises(DistilError, match=r"all examples are labelled.*transfer set, or set use_labels=False"):
        run(squad_file, HardTargets(), teacher)
    run(squad_file, HardTargets(use_labels=False), teacher)
    unsure = HardTargets(confidence_threshold=0.05)
    both = [teacher, tiny_reader(seed=2, num_hidden_layers=1, initializer_range=0.4)]
    assert run(transfer_set, HardTargets(), both) != run(transfer_set, unsure, both)
    with pytest.raises(DistilError, match="confidence_threshold needs the teacher's logits before"):
        run(transfer_set, unsure + IntermediateLayers(), teacher)


def test_a_threshold_that_no_window_reaches(
    tiny_reader: Callable[..., Reader], transfer_set: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = tiny_reader(seed=0, num_hidden_layers=1)
    trainer = ReaderTrainer(tiny_reader(seed=1, num_hidden_layers=1), settings=TrainingSettings(1, progress=False))
    before = model_fingerprint(trainer.student.model)
    # Labelled windows beside them would be learnt from, but the transfer set would not.
    for method in (HardTargets(confidence_threshold=0.99), Labels() + HardTargets(confidence_threshold=0.99)):
        with pytest.raises(DistilError, match=r"nowhere so confident, at most 0\.0\d\d in \d+ windows.*lower it"):
            trainer.distil(teacher, transfer_set, method)
    assert model_fingerprint(trainer.student.model) == before
    with caplog.at_level(logging.INFO):
        trainer.distil(teacher, transfer_set, HardTargets(confidence_threshold=0.001))
    found = re.search(r"reaches confidence_threshold=0\.001 in (\d+) of (\d+) windows", caplog.text)
    assert found is not None
    assert int(found[1]) == int(found[2]) > 0
