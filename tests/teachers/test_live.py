"""LiveTeacher: the model's own outputs, in evaluation mode, without gradients; what a student must share with it."""

from collections.abc import Callable

import pytest
import torch
from tokenizers import normalizers

from haystack_distill import DistilError, Reader, WindowSettings
from haystack_distill.models.language_model import LanguageModel
from haystack_distill.models.outputs import OutputRequest
from haystack_distill.teachers import LiveTeacher

MakeReader = Callable[..., Reader]
LOGITS = OutputRequest(logits=True)


def batch_of(reader: Reader) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, len(reader.tokenizer), (2, 12), generator=torch.Generator().manual_seed(0))
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
        "labelled": torch.ones(2, dtype=torch.bool),
    }


def test_outputs_are_those_of_the_model_in_evaluation_mode(tiny_reader: MakeReader) -> None:
    reader = tiny_reader()
    teacher, batch = LiveTeacher(reader), batch_of(reader)
    reader.model.train()
    with teacher.active():
        found = teacher.outputs(batch, LOGITS | OutputRequest(hidden_states=True, attention_scores=(2,)))
        assert not reader.model.training
    assert reader.model.training
    reader.model.eval()
    names = ("input_ids", "attention_mask", "token_type_ids")
    expected = reader.model(**{name: batch[name] for name in names}, output_hidden_states=True)
    torch.testing.assert_close(found.start_logits, expected.start_logits)
    torch.testing.assert_close(found.end_logits, expected.end_logits)
    assert len(found.hidden_states) == 5
    torch.testing.assert_close(found.hidden_states[-1], expected.hidden_states[-1])
    assert found.attention_scores.keys() == {2}
    assert found.attention_scores[2].shape == (2, 2, 12, 12)
    assert not found.start_logits.requires_grad
    assert teacher.cached(batch) == {}


def test_the_fingerprint_has_weights_and_precision(tiny_reader: MakeReader) -> None:
    one, other = LiveTeacher(tiny_reader(seed=1)), LiveTeacher(tiny_reader(seed=2))
    assert one.fingerprint.keys() == {"weights", "precision"}
    assert one.fingerprint == LiveTeacher(tiny_reader(seed=1)).fingerprint != other.fingerprint


def test_a_student_must_share_tokenizer_positions_and_device(tiny_reader: MakeReader) -> None:
    reader = tiny_reader()
    teacher = LiveTeacher(reader)
    teacher.check(tiny_reader(num_hidden_layers=1), LOGITS)
    long = tiny_reader(window_settings=WindowSettings(max_seq_len=129, doc_stride=16), max_position_embeddings=256)
    with pytest.raises(DistilError, match="windows have 129 tokens, but the teacher has 128 positions; lower"):
        teacher.check(long, LOGITS)
    other = tiny_reader().copy()
    other.tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    with pytest.raises(DistilError, match="have different tokenizers"):
        teacher.check(other, LOGITS)
    far = tiny_reader()
    far.device = torch.device("cuda", 1)
    with pytest.raises(DistilError, match="must be on one device"):
        teacher.check(far, LOGITS)


def test_logits_need_a_trained_head(tiny_reader: MakeReader) -> None:
    reader = tiny_reader()
    reader.untrained = ("qa_outputs.weight",)
    LiveTeacher(reader).check(tiny_reader(), OutputRequest(hidden_states=True))
    with pytest.raises(DistilError, match="answers are random"):
        LiveTeacher(reader).check(tiny_reader(), LOGITS)


def test_a_language_model_can_be_a_teacher(tiny_reader: MakeReader) -> None:
    reader = tiny_reader()
    teacher = LiveTeacher(LanguageModel.of(reader))
    teacher.check(reader.copy(), OutputRequest(hidden_states=True))
    assert len(teacher.outputs(batch_of(reader), OutputRequest(hidden_states=True)).hidden_states) == 5
