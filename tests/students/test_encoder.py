"""Readers from general students: the encoder of the student, and the head of the teacher where it fits."""

import torch
from transformers import AutoModelForMaskedLM, BertConfig, BertTokenizerFast

from haystack_distill import Reader, students
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
    student = students.fresh(LanguageModel.of(teacher), hidden_size=16)
    one, other = (students.from_language_model(student, teacher) for _ in range(2))
    assert one.model.qa_outputs.weight.shape == (2, 16)
    assert same(one, other)
