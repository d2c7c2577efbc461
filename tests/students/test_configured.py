"""Students from a configuration have the shape that was asked for, and random layers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from haystack_distill import DistilError, Reader
from haystack_distill.models.language_model import LanguageModel
from haystack_distill.models.reader import position_limit
from haystack_distill.students.configured import from_config
from haystack_distill.students.cut import from_teacher
from haystack_distill.utils.model_fingerprint import model_fingerprint
from haystack_distill.utils.transformers_compat import TRANSFORMERS_5
from tests.students.conftest import CONTEXT, LAYERS, QUESTION


def test_students_of_a_funnel(make_teacher: Callable[..., Reader]) -> None:
    teacher = make_teacher("funnel")
    with pytest.raises(DistilError, match=r"blocks.*students\.from_config with block_sizes"):
        from_teacher(teacher, 3)
    student = from_config(teacher, block_sizes=[1, 1, 1])
    assert student.model.config.num_hidden_layers == 3
    assert student.answer(QUESTION, CONTEXT)
    assert torch.equal(student.model.qa_outputs.weight, teacher.model.qa_outputs.weight)
    inside = "funnel.encoder.blocks.0.0.attention.q_head.weight"
    assert not torch.equal(student.model.state_dict()[inside], teacher.model.state_dict()[inside])
    with pytest.raises(DistilError, match="funnel has no 'num_hidden_layers'"):
        from_config(teacher, num_hidden_layers=3)


SMALL = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}


@pytest.mark.parametrize("model_type", ["mpnet", "xmod", "data2vec-text", "roberta"])
def test_students_that_count_positions_otherwise(make_teacher: Callable[..., Reader], model_type: str) -> None:
    """They have as many positions as the teacher, whatever padding id they count from."""
    teacher = make_teacher("bert")
    shape = SMALL | ({"languages": ["en_XX"], "default_language": "en_XX"} if model_type == "xmod" else {})
    student = from_config(teacher, model_type=model_type, **shape)
    assert position_limit(student.model) == position_limit(teacher.model)
    longest = replace(student.window_settings, max_seq_len=position_limit(teacher.model))
    assert student.replace(window_settings=longest).answer(QUESTION, CONTEXT * 20)


def test_a_student_without_a_limit_of_positions(make_teacher: Callable[..., Reader]) -> None:
    student = from_config(make_teacher(), model_type="xlnet", num_hidden_layers=1, hidden_size=8, num_attention_heads=2)
    assert position_limit(student.model) is None
    assert student.answer(QUESTION, CONTEXT * 20)


def test_a_student_has_the_special_tokens_of_its_tokenizer(make_teacher: Callable[..., Reader]) -> None:
    """BigBird's head looks for the separator to leave out the question."""
    teacher = make_teacher("bert")
    shape = SMALL | {"attention_type": "original_full"}
    student = from_config(teacher, model_type="big_bird", **shape)
    assert student.model.config.sep_token_id == teacher.tokenizer.sep_token_id
    batch = student.cut_pairs([(QUESTION, CONTEXT)])
    [(inputs, starts, _)] = student.logits(batch, [0])
    question = ~inputs["context_mask"][0] & inputs["attention_mask"][0].bool()
    question[0] = False  # the no-answer
    length = int(inputs["attention_mask"][0].sum())
    assert (starts[0, :length][question[:length]][:-1] < -1e5).all()
    with pytest.raises(DistilError, match="a longformer model cannot read this tokenizer's windows"):
        from_config(teacher, model_type="longformer", **SMALL, attention_window=4)


@pytest.mark.parametrize("kind", [*LAYERS, "albert"])
def test_fresh_shapes(make_teacher: Callable[..., Reader], kind: str) -> None:
    teacher = make_teacher(kind)
    before = model_fingerprint(teacher.model)
    shape = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 4}
    student = from_config(teacher, **shape)
    assert {name: getattr(student.model.config, name) for name in shape} == shape
    assert student.n_parameters < teacher.n_parameters
    assert student.model.config.vocab_size == teacher.model.config.vocab_size
    assert student.answer(QUESTION, CONTEXT)
    assert model_fingerprint(teacher.model) == before


def test_fresh_weights(make_teacher: Callable[..., Reader]) -> None:
    teacher = make_teacher()
    one, again, other = from_config(teacher, seed=1), from_config(teacher, seed=1), from_config(teacher, seed=2)
    assert model_fingerprint(one.model) == model_fingerprint(again.model) != model_fingerprint(other.model)
    weights, mine = teacher.model.state_dict(), one.model.state_dict()
    same = {name for name in weights if torch.equal(weights[name], mine[name])}
    assert same == {
        name for name in weights if "encoder.layer" not in name
    }  # embeddings and head fit, layers are fresh


def test_fresh_leaves_the_random_numbers_alone(make_teacher: Callable[..., Reader]) -> None:
    teacher = make_teacher()
    torch.manual_seed(5)
    from_config(teacher)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), drawn)


def test_shapes_that_do_not_fit(make_teacher: Callable[..., Reader]) -> None:
    with pytest.raises(DistilError, match="the configuration of bert has no 'width'"):
        from_config(make_teacher(), width=8)
    for shape, message in (
        ({"hidden_size": "192"}, "hidden_size must be a whole number of at least 1, not '192'"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be a whole number"),
        ({"num_attention_heads": 0}, "num_attention_heads must be a whole number"),
        ({"hidden_dropout_prob": "0.1"}, "hidden_dropout_prob must be a number, not '0.1'"),
        ({"max_position_embeddings": 64.0}, "max_position_embeddings must be a whole number"),
        ({"max_position_embeddings": -3}, r"no bert model can be made with max_position_embeddings=-3 \("),
        ({"hidden_act": 3}, "hidden_act must be text"),
        ({"hidden_act": "no-such"}, "hidden_act.*no-such"),
        ({"seed": "1"}, "seed must be a whole number"),
    ):
        with pytest.raises(DistilError, match=message):
            from_config(make_teacher(), **shape)
    with pytest.raises(DistilError, match="hidden_size 9 is not a multiple of num_attention_heads 2"):
        from_config(make_teacher(), hidden_size=9)
    with pytest.raises(DistilError, match="num_hidden_layers must be a whole number of at least 1, not 'six'"):
        from_config(make_teacher(), num_hidden_layers="six")
    with pytest.raises(DistilError, match=r"no squeezebert model can be made with hidden_size=8 \("):
        from_config(make_teacher("squeezebert"), hidden_size=8)


@pytest.mark.parametrize("model_type", ["mobilebert", "roberta", "distilbert", *["modernbert"] * TRANSFORMERS_5])
def test_another_architecture(make_teacher: Callable[..., Reader], tmp_path: Path, model_type: str) -> None:
    teacher = make_teacher()
    shape = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 4}
    if model_type == "mobilebert":
        shape |= {"embedding_size": 8, "intra_bottleneck_size": 8, "intermediate_size": 16}
    student = from_config(teacher, model_type=model_type, **shape)
    assert student.model.config.model_type == model_type
    assert {name: getattr(student.model.config, name) for name in shape} == shape
    assert student.tokenizer.get_vocab() == teacher.tokenizer.get_vocab()
    assert position_limit(student.model) == position_limit(teacher.model)
    expected = student.answer(QUESTION, CONTEXT)
    student.save(tmp_path / "student")
    again = Reader.load(tmp_path / "student", window_settings=student.window_settings, precision="fp32", device="cpu")
    again = again.replace(max_answer_length=student.max_answer_length, no_answer_threshold=student.no_answer_threshold)
    assert [answer.text for answer in again.answer(QUESTION, CONTEXT)] == [answer.text for answer in expected]
    encoder = from_config(LanguageModel.of(teacher), model_type=model_type, **shape)
    assert encoder.model.config.model_type == model_type
    assert not encoder.has_head


@pytest.mark.parametrize("model_type", ["fnet", "canine", "ibert", "lxmert", "longformer", "bilstm", "early_exit_bert"])
def test_architectures_that_are_not_made(make_teacher: Callable[..., Reader], model_type: str) -> None:
    """Whatever a library's class does is one sentence, and none is offered that cannot be made."""
    with pytest.raises(DistilError) as caught:
        from_config(make_teacher(), model_type=model_type, num_hidden_layers=2)
    assert not {"bilstm", "early_exit_bert"} & set(str(caught.value).replace(",", "").split()) or model_type == "bilstm"


def test_an_inverted_bottleneck(make_teacher: Callable[..., Reader]) -> None:
    """MobileBERT's teacher is wider inside its layers than between them; its student has the same embeddings."""
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "embedding_size": 8}
    wide = {"intra_bottleneck_size": 32, "intermediate_size": 64, "num_feedforward_networks": 1}
    teacher = from_config(make_teacher(), model_type="mobilebert", **shape, **wide)
    student = from_config(teacher, intra_bottleneck_size=8, intermediate_size=16, num_feedforward_networks=2)
    for reader, width in ((teacher, 32), (student, 8)):
        assert reader.model.config.true_hidden_size == width
        assert reader.model.mobilebert.encoder.layer[0].attention.self.query.out_features == width
        assert reader.answer(QUESTION, CONTEXT)
    embeddings = [reader.model.get_input_embeddings().weight for reader in (student, teacher)]
    assert torch.equal(*embeddings)
    with pytest.raises(DistilError, match="intra_bottleneck_size 9 is not a multiple of num_attention_heads 4"):
        from_config(teacher, intra_bottleneck_size=9)
    with pytest.raises(DistilError, match=r"model_type must be one of .*mobilebert.*not 'mobile-bert'"):
        from_config(teacher, model_type="mobile-bert")
