"""students.bilstm: where its embeddings come from, its shape, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertTokenizerFast

from haystack_distill import Reader, students
from haystack_distill.errors import DataError, DistilError
from haystack_distill.students.recurrent import reduce_embeddings


@pytest.fixture
def teacher(tiny_reader: Callable[..., Reader]) -> Reader:
    return tiny_reader()


def table_of(student: Reader) -> torch.Tensor:
    return student.model.get_input_embeddings().weight.detach()


def test_the_shape(teacher: Reader) -> None:
    student = students.bilstm(teacher)
    config = student.model.config
    assert (config.embedding_size, config.units, config.hidden_size, config.num_hidden_layers) == (32, 600, 1200, 1)
    assert (config.dropout, config.recurrent_dropout) == (0.4, 0.2)
    assert config.sep_token_id == student.tokenizer.sep_token_id == teacher.tokenizer.sep_token_id
    assert student.window_settings == teacher.window_settings
    wide = students.bilstm(teacher, embeddings="random")
    # At most a fifth of the 85 million weights that the layers of a reader of base size have.
    assert wide.n_parameters - table_of(wide).numel() < 17e6
    assert table_of(wide).shape[1] == 300
    deep = students.bilstm(teacher, units=4, num_hidden_layers=3).model.bilstm.encoder.layer
    assert [layer.input_size for layer in deep] == [32, 8, 8]


def test_embeddings_of_the_teacher_are_reduced_as_by_numpy(teacher: Reader) -> None:
    own = teacher.model.get_input_embeddings().weight.detach()
    left, values, _ = np.linalg.svd(own.double().numpy(), full_matrices=False)
    expected = (left * values)[:, :10]
    found = table_of(students.bilstm(teacher, embedding_size=10, units=4)).numpy()
    signs = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found, expected * signs, atol=1e-5)
    assert torch.equal(reduce_embeddings(own, 10), torch.from_numpy(found))
    assert torch.equal(reduce_embeddings(own, 4), torch.from_numpy(found[:, :4]))


def test_a_seed_makes_the_same_student(teacher: Reader) -> None:
    def weights(**options: object) -> dict[str, torch.Tensor]:
        return students.bilstm(teacher, units=4, embedding_size=5, **options).model.state_dict()

    state = torch.get_rng_state()
    first = weights(embeddings="random")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weight, first[name]) for name, weight in weights(embeddings="random").items())
    other = weights(embeddings="random", seed=1)
    for name in ("bilstm.embeddings.word_embeddings.weight", "bilstm.encoder.layer.0.weight_hh_l0"):
        assert not torch.equal(first[name], other[name])
    table = first["bilstm.embeddings.word_embeddings.weight"]
    assert 0.09 < table.abs().max() <= 0.1


@pytest.mark.parametrize("header", ["", "4 2\n"])
def test_embeddings_of_a_file(header: str, teacher: Reader, tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text(f"{header}the 1 2\nzyzzy 0 0\n? 5 6\nAda 7 8\n", encoding="utf-8")
    table = table_of(students.bilstm(teacher, embeddings=path, units=4))
    ids = tokenizer.get_vocab()
    assert table.shape == (len(tokenizer), 2)
    assert table[ids["the"]].tolist() == [1, 2]
    assert table[ids["?"]].tolist() == [5, 6]
    others = [id_ for piece, id_ in ids.items() if piece not in ("the", "?")]
    assert table[others].abs().max() <= 0.1
    assert table[others].unique(dim=0).shape[0] == len(others)


def test_a_cased_word_falls_back_to_lower_case(
    teacher: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haystack_distill.students.recurrent.whole_words", lambda _: {7: "Bees", 8: "Ada", 9: "May"})
    path = tmp_path / "vectors.txt"
    path.write_text("bees 1\nAda 2\nada 3\n", encoding="utf-8")
    assert table_of(students.bilstm(teacher, embeddings=path, units=4))[7:9].tolist() == [[1], [2]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read .*; embeddings must be a GloVe file"),
        ("the 1 2\nof 1\n", "line 2: not a word and its vector .*; embeddings must be"),
        ("a 1 2\nthe 1 x\n", "line 2: not a word and its vector .*; embeddings must be"),
        ("a 1 2\nthe 1 nan\n", "line 2: not a word and its vector .*NaN or infinite"),
        ("a 1 2\nthe -inf 2\n", "line 2: not a word and its vector .*NaN or infinite"),
        ("", "holds no words"),
        ("zyzzy 1 2\n", "none of its words is a piece of the teacher's tokenizer;"),
    ],
)
def test_a_file_that_is_none(content: str | None, message: str, teacher: Reader, tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(DistilError, match=message) as found:
        students.bilstm(teacher, embeddings=path)
    assert str(path) in str(found.value)
    assert isinstance(found.value, DataError) or "none of its words" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": 0}, "units must be a whole number of at least 1"),
        ({"embedding_size": 2.5}, "embedding_size must be a whole number"),
        ({"embedding_size": 33}, "more than the 32 of the teacher's embeddings.*; lower it"),
        ({"embeddings": 3}, 'embeddings must be "teacher", "random" or a file'),
        ({"dropout": 1}, "dropout must be a number from 0 to below 1"),
        ({"recurrent_dropout": -0.1}, "recurrent_dropout must be"),
        ({"seed": -1}, "seed"),
    ],
)
def test_refusals(options: dict, message: str, teacher: Reader) -> None:
    with pytest.raises(DistilError, match=message):
        students.bilstm(teacher, **options)


def test_what_cannot_be_made_of_it(teacher: Reader, tmp_path: Path) -> None:
    student = students.bilstm(teacher, units=4)
    with pytest.raises(DistilError, match=r"students\.bilstm; use that"):
        students.from_config(student, hidden_size=8)
    with pytest.raises(DistilError, match=r"students\.bilstm; use that"):
        students.from_config(teacher, model_type="bilstm")
    deep = students.bilstm(teacher, units=4, num_hidden_layers=2)
    assert students.from_teacher(deep, layers=1, which="first").model.config.num_hidden_layers == 1
    with pytest.raises(DistilError, match="the first layer of a BiLSTM reader reads embeddings"):
        students.from_teacher(deep, layers=1, which="last")
    path = tmp_path / "vectors.txt"
    path.write_text("the 1 2\n", encoding="utf-8")
    with pytest.raises(DistilError, match=r"embedding_size is 3, but the vectors .* have 2 numbers; leave it out"):
        students.bilstm(teacher, embeddings=path, embedding_size=3)
    teacher.tokenizer.sep_token = None
    with pytest.raises(DistilError, match="no separator"):
        students.bilstm(teacher)


@pytest.mark.parametrize("kind", ["pruned", "own"])
def test_another_vocabulary_keeps_the_question(kind: str, teacher: Reader, tmp_path: Path) -> None:
    """The separator has another id there."""
    student = students.bilstm(teacher, embedding_size=8, units=4)
    texts = ["Who built the harbour?", "The harbour of Lindow was built in 1702."] * 4
    if kind == "pruned":
        made = students.prune_vocabulary(student, texts)
    else:
        made = students.with_tokenizer(student, texts, algorithm="wordpiece", vocab_size=60)
    assert made.model.config.sep_token_id == made.tokenizer.sep_token_id
    again = Reader.load(made.save(tmp_path), window_settings=made.window_settings, device="cpu")
    assert again.answer(*texts[:2]) == made.answer(*texts[:2])
    assert made.n_parameters < student.n_parameters
