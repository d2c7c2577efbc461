"""Readers from general students: the encoder of the student, and the head of the teacher where it fits."""

import pytest
import torch
from transformers import AutoModelForMaskedLM, BertConfig, BertTokenizerFast, XLNetConfig

from haystack_distill import DistilError, Reader, students
from haystack_distill.models.language_model import LanguageModel

SHAPE = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24}


def make_model(tokenizer: BertTokenizerFast, config: type = BertConfig, **shape: int) -> LanguageModel:
    torch.manual_seed(0)
    made = config(**SHAPE | {"vocab_size": len(tokenizer), "max_position_embeddings": 66} | shape)
    return LanguageModel(AutoModelForMaskedLM.from_config(made), tokenizer, device="cpu")


def same(one: LanguageModel | Reader, other: LanguageModel | Reader) -> bool:
    ours, theirs = (model.model.state_dict() for model in (one, other))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_reader_on_top_of_a_general_student(tiny_reader, tokenizer: BertTokenizerFast) -> None:
    teacher = tiny_reader()
    for make in (
        lambda: students.from_teacher(LanguageModel.of(teacher), layers=2),
        lambda: make_model(tokenizer, hidden_size=32, max_position_embeddings=128),
    ):
        student = make()
        reader = students.from_language_model(student, teacher)
        encoder = reader.model.base_model.state_dict()
        for name, weight in student.model.base_model.state_dict().items():
            assert torch.equal(encoder[name], weight), name
        assert torch.equal(reader.model.qa_outputs.weight, teacher.model.qa_outputs.weight)
        assert reader.window_settings == teacher.window_settings
        reader.model.base_model.get_input_embeddings().weight.data.zero_()
        assert student.model.get_input_embeddings().weight.abs().sum() > 0  # it is a copy


def test_a_head_that_does_not_fit_starts_the_same_every_time(tiny_reader) -> None:
    teacher = tiny_reader()
    student = students.from_config(LanguageModel.of(teacher), hidden_size=16)
    one, other = (students.from_language_model(student, teacher) for _ in range(2))
    assert one.model.qa_outputs.weight.shape == (2, 16)
    assert same(one, other)


def test_an_encoder_gets_a_language_model_head(tiny_reader) -> None:
    encoder = LanguageModel.of(tiny_reader())
    made, again = (students.with_language_model_head(encoder, seed=seed) for seed in (1, 1))
    assert made.has_head
    assert not encoder.has_head
    assert same(made, again)
    assert not same(made, students.with_language_model_head(encoder, seed=2))
    weights = made.model.base_model.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in encoder.model.state_dict().items())
    embeddings = made.model.get_input_embeddings().weight
    assert made.model.get_output_embeddings().weight is embeddings
    assert embeddings is not encoder.model.get_input_embeddings().weight


def test_an_architecture_without_a_language_model(tiny_reader) -> None:
    encoder = LanguageModel.of(tiny_reader())
    encoder.model.config = XLNetConfig()
    with pytest.raises(DistilError, match="no masked language model of the type xlnet; take a method"):
        students.with_language_model_head(encoder)
