"""A tokenizer of the student's own: where its embeddings begin, how it lays out pairs, and that it can be taught."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import MPNetConfig, MPNetForQuestionAnswering

from haystack_distill import DistilError, Reader, ReaderTrainer, TrainingSettings, WindowSettings, students
from haystack_distill.data.text_tokenizer import PairTemplate, text_tokenizer
from haystack_distill.objectives import IntermediateLayers, PredictionLayer
from haystack_distill.students.tokenizer import ALGORITHMS, with_tokenizer
from tests.conftest import CONTEXTS, QUESTIONS
from tests.students.test_vocabulary import roberta_reader, unigram_reader

TEXTS = [*CONTEXTS, *(question for question, _, _ in QUESTIONS)]
PAIRS = [(question, CONTEXTS[place]) for question, place, _ in QUESTIONS]
SIZE = {"wordpiece": 120, "bpe": 330, "unigram": 120}  # byte-level BPE has 256 characters


@pytest.fixture(params=["WordPiece", "BPE", "Unigram"])
def reader(request: pytest.FixtureRequest, tiny_reader: Callable[..., Reader], tmp_path: Path) -> Reader:
    if request.param == "WordPiece":
        return tiny_reader(window_settings=WindowSettings(100, 32, 40))
    return (roberta_reader if request.param == "BPE" else unigram_reader)(tmp_path)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_from_each_kind_to_each(reader: Reader, algorithm: str, tmp_path: Path) -> None:
    student = with_tokenizer(reader, TEXTS, algorithm=algorithm, vocab_size=SIZE[algorithm])
    assert len(student.tokenizer) == student.model.config.vocab_size <= SIZE[algorithm]
    assert student.model.get_input_embeddings().weight.shape[0] == len(student.tokenizer)
    assert student.tokenizer.backend_tokenizer.model.__class__.__name__.lower() == algorithm
    old, new = (PairTemplate.of(one.tokenizer) for one in (reader, student))
    for part in ("prefix", "middle", "suffix"):  # the same tokens in the same places
        names = (
            one.tokenizer.convert_ids_to_tokens(list(getattr(template, part)))
            for one, template in ((reader, old), (student, new))
        )
        assert next(names) == next(names)
    assert (new.question_type, new.context_type) == (old.question_type, old.context_type)
    assert student.tokenizer.unk_token_id not in student.tokenizer(" ".join(TEXTS))["input_ids"]
    answers = student.answer_batch(PAIRS, 3)
    for (_, context), found in zip(PAIRS, answers, strict=True):
        assert all(context[one.start : one.end] == one.text for one in found if not one.no_answer)
    loaded = Reader.load(
        student.save(tmp_path / "student"), window_settings=reader.window_settings, device="cpu", precision="fp32"
    )
    assert (
        loaded.tokenizer("Ada wrote it", "in 1843")["input_ids"]
        == student.tokenizer("Ada wrote it", "in 1843")["input_ids"]
    )
    student.precision = "fp32"
    assert loaded.answer_batch(PAIRS, 3) == student.answer_batch(PAIRS, 3)
    special = reader.tokenizer.all_special_tokens
    tables = [one.model.get_input_embeddings().weight for one in (reader, student)]
    ids = [one.tokenizer.convert_tokens_to_ids(special) for one in (reader, student)]
    assert torch.equal(tables[0][ids[0]], tables[1][ids[1]])


def test_an_embedding_is_the_mean_of_those_at_its_places(tiny_reader: Callable[..., Reader]) -> None:
    reader = tiny_reader(window_settings=WindowSettings(100, 32, 40))
    student = with_tokenizer(reader, TEXTS, algorithm="bpe", vocab_size=400)
    table = reader.model.get_input_embeddings().weight.detach().double()
    expected: dict[int, list[tuple[float, torch.Tensor]]] = {}
    for text in TEXTS:
        before, after = (
            text_tokenizer(one.tokenizer).encode(text, add_special_tokens=False) for one in (reader, student)
        )
        for id, (start, end) in zip(after.ids, after.offsets, strict=True):
            for old, (first, last) in zip(before.ids, before.offsets, strict=True):
                share = max(0, min(end, last) - max(start, first)) / (last - first)
                expected.setdefault(id, []).append((share, table[old]))
    rows = student.model.get_input_embeddings().weight.detach()
    for id, found in expected.items():
        weights = torch.tensor([share for share, _ in found])
        mean = (weights[:, None] * torch.stack([row for _, row in found])).sum(0) / weights.sum()
        torch.testing.assert_close(rows[id].double(), mean, rtol=1e-5, atol=1e-6)
    unseen = next(id for id in range(len(rows)) if id not in expected and id > 10)
    torch.testing.assert_close(rows[unseen].double(), table.mean(0), rtol=1e-5, atol=1e-6)


def test_the_vocabulary_of_the_old_tokenizer_gives_its_own_embeddings(tiny_reader: Callable[..., Reader]) -> None:
    """Where both tokenizers write a whole word as one token, its embedding stays."""
    reader = tiny_reader(window_settings=WindowSettings(100, 32, 40))
    text = "glacier"
    assert reader.tokenizer.tokenize(text) == [text]
    student = with_tokenizer(reader, [text] * 5, algorithm="wordpiece", vocab_size=40)
    assert student.tokenizer.tokenize(text) == [text]
    rows = [
        one.model.get_input_embeddings().weight[one.tokenizer.convert_tokens_to_ids(text)] for one in (reader, student)
    ]
    torch.testing.assert_close(rows[0], rows[1])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_it_is_deterministic_and_leaves_the_reader_alone(tiny_reader: Callable[..., Reader], algorithm: str) -> None:
    reader = tiny_reader(window_settings=WindowSettings(100, 32, 40))
    before = reader.answer_batch(PAIRS[:2], 3)
    one, other = (
        with_tokenizer(reader, iter(TEXTS), algorithm=algorithm, vocab_size=SIZE[algorithm]) for _ in range(2)
    )
    assert one.tokenizer.get_vocab() == other.tokenizer.get_vocab()
    for name, weight in one.model.state_dict().items():
        assert torch.equal(weight, other.model.state_dict()[name])
    assert reader.answer_batch(PAIRS[:2], 3) == before


def test_a_model_without_token_types_gets_none(tiny_reader: Callable[..., Reader], tmp_path: Path) -> None:
    plain = tiny_reader(window_settings=WindowSettings(100, 32, 40))
    plain.tokenizer.model_input_names = ["input_ids", "attention_mask"]
    torch.manual_seed(0)
    config = MPNetConfig(
        vocab_size=len(plain.tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=130,
        pad_token_id=0,
    )
    model = MPNetForQuestionAnswering(config)
    model.mpnet.embeddings.padding_idx = model.mpnet.embeddings.position_embeddings.padding_idx = 0
    student = with_tokenizer(plain.replace(model=model), TEXTS, vocab_size=110)
    assert list(student.tokenizer("a", "b")) == ["input_ids", "attention_mask"]
    assert "token_type_ids" not in student.tokenizer("a", "b")


def test_it_learns_a_teachers_answers_and_not_its_layers(
    tiny_reader: Callable[..., Reader], squad_file: Path, tmp_path: Path
) -> None:
    teacher = tiny_reader(window_settings=WindowSettings(100, 32, 40))
    student = students.with_tokenizer(students.from_teacher(teacher, layers=1), TEXTS, vocab_size=110)
    settings = TrainingSettings(max_steps=2, progress=False, batch_size=2, checkpoint_every=None)
    before = student.model.get_input_embeddings().weight.detach().clone()
    result = ReaderTrainer(student, settings=settings).distil(teacher, squad_file, PredictionLayer())
    assert result.steps == 2
    assert not torch.equal(student.model.get_input_embeddings().weight, before)
    with pytest.raises(DistilError, match="tokenizer"):
        ReaderTrainer(student, settings=settings).distil(
            teacher, squad_file, IntermediateLayers(attention_loss_weight=0)
        )


def test_refused(tiny_reader: Callable[..., Reader], tmp_path: Path) -> None:
    reader = tiny_reader()
    with pytest.raises(DistilError, match="corpus has no text"):
        with_tokenizer(reader, ["", " "])
    with pytest.raises(DistilError, match="algorithm must be one of"):
        with_tokenizer(reader, TEXTS, algorithm="words")  # type: ignore[arg-type]
    for wrong in (0, 2.5, True, "8000"):
        with pytest.raises(DistilError, match="vocab_size must be"):
            with_tokenizer(reader, TEXTS, vocab_size=wrong)  # type: ignore[arg-type]
    with pytest.raises(DistilError, match="vocab_size must be at least"):
        with_tokenizer(reader, TEXTS, algorithm="wordpiece", vocab_size=10)
    with pytest.raises(DistilError, match="counts positions from padding id 270"):
        with_tokenizer(roberta_reader(tmp_path, pad=270), TEXTS)
