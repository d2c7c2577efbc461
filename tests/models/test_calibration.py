"""A calibration in a reader: the temperature in its head, the threshold in its configuration, and who honours them."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    BigBirdConfig,
    BigBirdForQuestionAnswering,
    DistilBertConfig,
    DistilBertForQuestionAnswering,
    PreTrainedModel,
    RobertaConfig,
    RobertaForQuestionAnswering,
)

from haystack_distill import DistilError, Reader, ReaderTrainer, TrainingSettings, students
from haystack_distill.models.calibration import (
    answer_heads,
    calibration_record,
    fold_temperature,
    folds,
    forget_calibration,
    stored_threshold,
)
from haystack_distill.models.language_model import LanguageModel
from haystack_distill.objectives import Labels, SelfDistillation
from tests.conftest import CONTEXTS

SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
MODELS = [
    RobertaForQuestionAnswering(RobertaConfig(**SMALL)),
    BigBirdForQuestionAnswering(BigBirdConfig(**SMALL, attention_type="original_full")),
    DistilBertForQuestionAnswering(DistilBertConfig(vocab_size=50, dim=16, n_layers=1, n_heads=2, hidden_dim=16)),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_the_logits_are_divided(model: PreTrainedModel) -> None:
    torch.manual_seed(0)
    ids = torch.randint(5, 50, (2, 9))
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[:, :4] = False  # BigBird puts large numbers at the question
    model.eval()
    with torch.no_grad():
        before = model(input_ids=ids)
        fold_temperature(model, 2.5)
        after = model(input_ids=ids)
    for name in ("start_logits", "end_logits"):
        torch.testing.assert_close(after[name][mask], before[name][mask] / 2.5)
        assert folds(before[name], after[name], 2.5, mask)
        assert not folds(before[name], after[name], 2.0, mask)


def test_which_layer_is_the_head() -> None:
    model = MODELS[0]
    assert answer_heads(model) == [model.qa_outputs]
    named = SimpleNamespace(answer_heads=lambda: [model.qa_outputs])
    assert answer_heads(named) == [model.qa_outputs]  # type: ignore[arg-type]
    with pytest.raises(DistilError, match="no dense layer for start and end"):
        answer_heads(BertModel(BertConfig(**SMALL)))
    for temperature in (0, -1.0, float("nan")):
        with pytest.raises(DistilError, match="temperature must be a number above 0"):
            fold_temperature(model, temperature)


def test_readers_of_our_own_architectures_are_folded(tiny_reader: Callable[..., Reader]) -> None:
    """The span head of a BiLSTM, and with early exits every branch."""
    teacher = tiny_reader()
    inputs = {"input_ids": torch.arange(5, 25)[None], "attention_mask": torch.ones(1, 20, dtype=torch.long)}
    for reader in (
        students.bilstm(teacher, units=8, embedding_size=6),
        students.early_exit(teacher, branch_size=4),
        students.early_exit(teacher, branch_size=2),  # as many as a head has outputs
    ):
        model = reader.model.eval()
        exits = hasattr(model, "branches")
        with torch.no_grad():
            before = model(**inputs)
            hidden = torch.rand(1, 20, 32)
            branches = [branch(hidden) for branch in model.branches] if exits else []
            fold_temperature(model, 4.0)
            after = model(**inputs)
            torch.testing.assert_close(after.start_logits, before.start_logits / 4)
            torch.testing.assert_close(after.end_logits, before.end_logits / 4)
            for branch, logits in zip(model.branches if exits else [], branches, strict=True):
                torch.testing.assert_close(branch(hidden), logits / 4)


def test_a_stored_threshold_is_taken_off_the_no_answer(tiny_reader: Callable[..., Reader], tmp_path: Path) -> None:
    reader = tiny_reader()
    pair = [("Who?", CONTEXTS[0])]
    plain = reader.predict_pairs(pair)[0]
    reader.model.config.calibration = {"temperature": 2.0, "no_answer_threshold": -1.5}
    again = Reader.load(reader.save(tmp_path), window_settings=reader.window_settings, precision="fp32")
    assert calibration_record(again.model.config)["temperature"] == 2.0
    for one in (reader, again, again.copy(), again.replace(batch_size=2)):
        found = one.predict_pairs(pair)[0]
        assert found.no_answer.logit == pytest.approx(plain.no_answer.logit + 1.5, abs=1e-5)
        assert found.no_answer_gap == pytest.approx(plain.no_answer_gap + 1.5, abs=1e-5)
        assert found.answers[0].logit == pytest.approx(plain.answers[0].logit, abs=1e-5)
        assert found.answers[0].score < plain.answers[0].score  # the no-answer has more of the probability
        assert found.no_answer.score > plain.no_answer.score
        raw = [table.clone() for _, *table in one.logits(one.cut_pairs(pair), [0]) for table in table]
        moved = [table for _, *table in one.answer_logits(one.cut_pairs(pair), [0]) for table in table]
        for before, after in zip(raw, moved, strict=True):
            assert after[0, 0] == pytest.approx(float(before[0, 0]) + 0.75)
            assert torch.equal(after[:, 1:], before[:, 1:])
    for threshold in (plain.no_answer_gap - 0.1, plain.no_answer_gap + 0.1):
        again.model.config.calibration["no_answer_threshold"] = threshold
        assert again.answer(*pair[0])[0].no_answer == (threshold < plain.no_answer_gap)
        assert again.replace(no_answer_threshold=1e3).answer(*pair[0])[0].text
    assert forget_calibration(again.model.config)
    assert not forget_calibration(again.model.config)
    assert again.predict_pairs(pair)[0] == plain


def test_a_broken_record_is_named(tiny_reader: Callable[..., Reader]) -> None:
    reader = tiny_reader()
    reader.model.config.calibration = {"no_answer_threshold": "high"}
    with pytest.raises(DistilError, match=r"calibration\.no_answer_threshold must be a number, not 'high'; correct it"):
        reader.replace(batch_size=1)
    reader.model.config.calibration = "none of ours"
    assert stored_threshold(reader.model.config) is None


def test_training_forgets_it(tiny_reader: Callable[..., Reader], squad_file: Path, tmp_path: Path) -> None:
    reader = tiny_reader()
    reader.model.config.calibration = {"temperature": 2.0, "no_answer_threshold": -1.5}
    settings = TrainingSettings(max_steps=1, progress=False, checkpoint_every=None)
    ReaderTrainer(reader, tmp_path / "run", settings).distil(None, squad_file, Labels())
    assert not calibration_record(reader.model.config)
    assert not calibration_record(Reader.load(tmp_path / "run", window_settings=reader.window_settings).model.config)


def test_training_of_branches_alone_keeps_it(tiny_reader: Callable[..., Reader], squad_file: Path) -> None:
    reader = tiny_reader()
    reader.model.config.calibration = record = {"temperature": 2.0, "no_answer_threshold": -1.5}
    settings = TrainingSettings(max_steps=1, progress=False, checkpoint_every=None)
    before = reader.predict_pairs([("Who?", CONTEXTS[0])])[0].no_answer_gap
    fast = students.early_exit(reader, branch_size=4)
    ReaderTrainer(fast, settings=settings).distil(None, squad_file, SelfDistillation())
    assert calibration_record(fast.model.config) == record
    assert fast.predict_pairs([("Who?", CONTEXTS[0])])[0].no_answer_gap == pytest.approx(before, abs=1e-5)
    ReaderTrainer(fast, settings=settings).distil(
        None, squad_file, SelfDistillation(backbone=True, label_loss_weight=1.0)
    )
    assert not calibration_record(fast.model.config)


def test_a_student_of_other_weights_is_not_calibrated(tiny_reader: Callable[..., Reader]) -> None:
    teacher = tiny_reader()
    teacher.model.config.calibration = {"temperature": 2.0, "no_answer_threshold": -1.5}
    for student in (
        students.from_teacher(teacher, layers=2),
        students.from_config(teacher, num_hidden_layers=1),
        students.pruned(teacher, unlabelled(), intermediate_size=8, importance_sample=1),
    ):
        assert not calibration_record(student.model.config)
    assert calibration_record(teacher.model.config)
    assert calibration_record(students.early_exit(teacher).model.config)  # its full reader is the teacher


def test_an_encoder_forgets_the_calibration_of_its_reader(tiny_reader: Callable[..., Reader]) -> None:
    teacher = tiny_reader()
    teacher.model.config.calibration = {"temperature": 2.0, "no_answer_threshold": -1.5}
    made = students.from_language_model(LanguageModel.of(teacher).copy(), tiny_reader())
    assert not calibration_record(made.model.config)


def test_a_run_that_is_refused_keeps_it(tiny_reader: Callable[..., Reader], squad_file: Path, tmp_path: Path) -> None:
    reader = tiny_reader()
    reader.model.config.calibration = record = {"temperature": 2.0, "no_answer_threshold": -1.5}
    reader.save(tmp_path / "there")
    settings = TrainingSettings(max_steps=1, progress=False, checkpoint_every=None)
    with pytest.raises(DistilError, match=r"config\.json"):
        ReaderTrainer(reader, tmp_path / "there", settings).distil(None, squad_file, Labels())
    assert calibration_record(reader.model.config) == record


def unlabelled() -> datasets.Dataset:
    return datasets.Dataset.from_list([{"question": "Who?", "context": CONTEXTS[0], "labelled": False}])
