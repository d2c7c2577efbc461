"""LiveTeacher: the model's own outputs, in evaluation mode, without gradients; what a student must share with it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import normalizers
from transformers import MPNetConfig, MPNetForQuestionAnswering

from haystack_distill import DistilError, Reader, ReaderTrainer, TrainingSettings, WindowSettings
from haystack_distill.models.language_model import LanguageModel
from haystack_distill.models.outputs import OutputRequest
from haystack_distill.objectives import AttentionRelations, IntermediateLayers, Representation
from haystack_distill.objectives.method import Method
from haystack_distill.teachers import LiveTeacher
from tests.data.test_token_translation import like_mpnet

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


def mpnet_like_reader(student: Reader) -> Reader:
    """A random MPNet of another width, with the student's pieces in MPNet's layout."""
    tokenizer = like_mpnet(student.tokenizer)
    config = MPNetConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=32,
        max_position_embeddings=66,
    )
    torch.manual_seed(0)
    model = MPNetForQuestionAnswering(config).eval()
    return Reader(model, tokenizer, window_settings=student.window_settings, device="cpu", precision="fp32")


def test_a_teacher_with_other_special_tokens_reads_its_own_windows(tiny_reader: MakeReader) -> None:
    student = tiny_reader()
    reader = mpnet_like_reader(student)
    teacher = LiveTeacher(reader)
    alone = teacher.fingerprint
    request = OutputRequest(logits=True, hidden_states=True, attention_scores=(2,), query_key_value=(4,))
    teacher.check(student, request)
    assert teacher.fingerprint.keys() - alone.keys() == {"tokenizer"}
    pairs = [("Who wrote it?", "Ada Lovelace wrote it in 1843."), ("When?", "It was built in 1702.")]
    windows, own = student.cut_pairs(pairs), reader.cut_pairs(pairs)
    batch, theirs = (one.collate(one.__getitems__([0, 1])) for one in (windows, own))
    found = teacher.outputs(batch, request)
    expected = LiveTeacher(reader).outputs(theirs, request)
    # The place of each of the student's tokens among the teacher's: one token more, after the question.
    n_question = (batch["input_ids"] == student.tokenizer.sep_token_id).int().argmax(1)
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        places = [at + (at > int(n_question[row])) for at in range(length)]
        for name in ("start_logits", "end_logits"):
            torch.testing.assert_close(getattr(found, name)[row, :length], getattr(expected, name)[row, places])
        for mine, others in zip(found.hidden_states, expected.hidden_states, strict=True):
            torch.testing.assert_close(mine[row, :length], others[row, places])
        scores = expected.attention_scores[2][row][:, places][:, :, places]
        torch.testing.assert_close(found.attention_scores[2][row][:, :length, :length], scores)
        for mine, others in zip(found.query_key_value[4], expected.query_key_value[4], strict=True):
            torch.testing.assert_close(mine[row, :length], others[row, places])


@pytest.mark.parametrize(
    "method", [AttentionRelations(), IntermediateLayers(attention_loss_weight=0), Representation()]
)
def test_its_layers_can_be_learnt(method: Method, tiny_reader: MakeReader, squad_file: Path) -> None:
    student = tiny_reader(num_hidden_layers=2)
    settings = TrainingSettings(max_steps=30, batch_size=8, learning_rate=1e-2, progress=False, checkpoint_every=None)
    result = ReaderTrainer(student, settings=settings).distil(mpnet_like_reader(student), squad_file, method)
    losses = [entry["loss"] for entry in result.history if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]


def test_a_teacher_with_more_special_tokens_needs_a_position_more(tiny_reader: MakeReader) -> None:
    student = tiny_reader(window_settings=WindowSettings(max_seq_len=64, doc_stride=16, max_query_length=16))
    with pytest.raises(DistilError, match="windows have 65 tokens, but the teacher has 64 positions"):
        LiveTeacher(mpnet_like_reader(student)).check(student, LOGITS)
