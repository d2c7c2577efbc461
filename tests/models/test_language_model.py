from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM, BertTokenizerFast, RobertaConfig

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


@pytest.mark.parametrize("config", [BertConfig, RobertaConfig])
def test_a_masked_language_model_survives_saving(tokenizer: BertTokenizerFast, tmp_path: Path, config: type) -> None:
    model = make_model(tokenizer, config)
    embeddings, head = model.model.get_input_embeddings().weight, model.model.get_output_embeddings().weight
    assert embeddings is head  # tied: one tensor that safetensors must hold once
    model.save(tmp_path / "lm")
    loaded = LanguageModel.load(tmp_path / "lm", device="cpu")
    assert loaded.has_head
    assert same(model, loaded)
    assert loaded.model.get_input_embeddings().weight is loaded.model.get_output_embeddings().weight
    assert sorted(file.suffix for file in (tmp_path / "lm").iterdir()).count(".safetensors") == 1
    assert not list((tmp_path / "lm").glob("*.bin"))


def test_a_tilde_is_the_home_directory(
    tokenizer: BertTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert make_model(tokenizer).save("~/lm") == tmp_path / "lm"
    assert LanguageModel.load("~/lm", device="cpu").has_head


def test_a_reader_gives_its_encoder(tiny_reader, tmp_path: Path) -> None:
    reader = tiny_reader()
    reader.save(tmp_path / "reader")
    loaded = LanguageModel.load(tmp_path / "reader", device="cpu")
    assert not loaded.has_head
    shared = LanguageModel.of(reader)
    assert same(loaded, shared)
    assert shared.model is reader.model.base_model
    loaded.save(tmp_path / "encoder")
    assert same(LanguageModel.load(tmp_path / "encoder", device="cpu"), loaded)


def test_what_is_no_language_model(tmp_path: Path) -> None:
    with pytest.raises(DistilError, match=r"cannot load a language model from .*nothing"):
        LanguageModel.load(tmp_path / "nothing")


def test_cutting_keeps_the_layers_and_the_head(tokenizer: BertTokenizerFast) -> None:
    teacher = make_model(tokenizer)
    student = students.from_teacher(teacher, layers=2)
    assert isinstance(student, LanguageModel)
    assert isinstance(student.model, BertForMaskedLM)
    theirs, ours = teacher.model.state_dict(), student.model.state_dict()
    for name, weight in ours.items():
        source = name.replace("layer.1.", "layer.2.")
        assert torch.equal(weight, theirs[source]), name
    assert student.model.get_input_embeddings().weight is student.model.get_output_embeddings().weight


def test_cutting_an_encoder_without_a_pooling_layer(tiny_reader) -> None:
    teacher = LanguageModel.of(tiny_reader())
    student = students.from_teacher(teacher, layers=2)
    assert student.model.pooler is None
    assert student.model.config.num_hidden_layers == 2
    narrow = students.from_config(teacher, hidden_size=16, num_hidden_layers=2)
    assert narrow.model.pooler is None
