"""Students carry exactly the teacher's weights that they should."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import (
    AlbertConfig,
    AutoModelForQuestionAnswering,
    BertConfig,
    BertTokenizerFast,
    DistilBertConfig,
    ElectraConfig,
    FunnelConfig,
    LongformerConfig,
    ModernBertConfig,
    PretrainedConfig,
    RobertaConfig,
    SqueezeBertConfig,
)

from haystack_distill import DistilError, Reader, WindowSettings
from haystack_distill.students.configured import fresh
from haystack_distill.students.cut import from_teacher
from haystack_distill.utils.model_fingerprint import model_fingerprint
from haystack_distill.utils.transformers_compat import TRANSFORMERS_5

LAYERS = {
    "bert": "bert.encoder.layer",
    "roberta": "roberta.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
    "electra": "electra.encoder.layer",
}
QUESTION, CONTEXT = (
    "Who built the harbour?",
    "The harbour of Lindow was built in 1702 by Cornelis Baak, who came from Delft.",
)


def config_of(kind: str, vocabulary: int, layers: int = 6) -> PretrainedConfig:
    shape = {"hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 24}
    common = {"vocab_size": vocabulary, "max_position_embeddings": 66, "pad_token_id": 0}
    return {
        "bert": lambda: BertConfig(**common, **shape),
        "roberta": lambda: RobertaConfig(**common, **shape, type_vocab_size=1),
        "distilbert": lambda: DistilBertConfig(**common, dim=16, n_layers=layers, n_heads=2, hidden_dim=24),
        "electra": lambda: ElectraConfig(**common, **shape, embedding_size=8),
        "albert": lambda: AlbertConfig(**common, **shape, embedding_size=8),
        "longformer": lambda: LongformerConfig(
            **common, **shape, attention_window=[2 * i for i in range(1, layers + 1)]
        ),
        "modernbert": lambda: ModernBertConfig(**common, **shape),
        "funnel": lambda: FunnelConfig(vocab_size=vocabulary, block_sizes=[2, 2, 2], d_model=16, n_head=2, d_head=8),
        "squeezebert": lambda: SqueezeBertConfig(**common, **shape, embedding_size=16),
    }[kind]()


@pytest.fixture
def make_teacher(tokenizer: BertTokenizerFast) -> Callable[..., Reader]:
    def make(kind: str = "bert", layers: int = 6) -> Reader:
        torch.manual_seed(0)
        model = AutoModelForQuestionAnswering.from_config(config_of(kind, len(tokenizer), layers))
        for parameter in model.parameters():  # biases too, so that no two layers share a weight by chance
            torch.nn.init.normal_(parameter, std=0.1)
        return Reader(
            model,
            tokenizer,
            window_settings=WindowSettings(48, 16, 16),
            max_answer_length=7,
            no_answer_threshold=0.25,
            batch_size=3,
            precision="fp32",
            device="cpu",
        )

    return make


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    ("layers", "which", "kept"),
    [
        (3, "uniform", [2, 4, 6]),
        (4, "uniform", [2, 3, 5, 6]),
        (1, "uniform", [6]),
        (2, "first", [1, 2]),
        (2, "last", [5, 6]),
        (3, [1, 3, 6], [1, 3, 6]),
    ],
)
def test_a_student_carries_the_layers_that_were_asked_for(
    make_teacher: Callable[..., Reader], kind: str, layers: int, which: str | Sequence[int], kept: list[int]
) -> None:
    teacher = make_teacher(kind)
    student = from_teacher(teacher, layers, which)
    assert student.model.config.num_hidden_layers == layers
    weights = student.model.state_dict()
    wanted = {}
    for name, weight in teacher.model.state_dict().items():
        if not name.startswith(f"{LAYERS[kind]}."):
            wanted[name] = weight
            continue
        number, rest = name.removeprefix(f"{LAYERS[kind]}.").split(".", 1)
        if int(number) + 1 in kept:
            wanted[f"{LAYERS[kind]}.{kept.index(int(number) + 1)}.{rest}"] = weight
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], weight) for name, weight in wanted.items())


def test_an_albert_student_shares_its_layers_as_the_teacher_does(make_teacher: Callable[..., Reader]) -> None:
    teacher = make_teacher("albert")
    student = from_teacher(teacher, 2)
    assert student.model.config.num_hidden_layers == 2
    assert student.n_parameters == teacher.n_parameters
    weights = teacher.model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in student.model.state_dict().items())
    assert student.answer(QUESTION, CONTEXT, 3) != teacher.answer(QUESTION, CONTEXT, 3)


def test_an_albert_of_several_groups_cannot_be_cut(tokenizer: BertTokenizerFast) -> None:
    config = config_of("albert", len(tokenizer))
    config.num_hidden_groups = 2
    teacher = Reader(
        AutoModelForQuestionAnswering.from_config(config), tokenizer, window_settings=WindowSettings(48, 16, 16)
    )
    with pytest.raises(DistilError, match="groups"):
        from_teacher(teacher, 2, "last")
    assert from_teacher(teacher, 6).n_parameters == teacher.n_parameters


@pytest.mark.parametrize("kind", [*LAYERS, "albert"])
def test_a_student_with_all_layers_answers_as_the_teacher(make_teacher: Callable[..., Reader], kind: str) -> None:
    teacher = make_teacher(kind)
    before = model_fingerprint(teacher.model)
    student = from_teacher(teacher, 6)
    assert student.answer(QUESTION, CONTEXT, 20) == teacher.answer(QUESTION, CONTEXT, 20)
    for parameter in student.model.parameters():
        torch.nn.init.zeros_(parameter)
    assert model_fingerprint(teacher.model) == before  # nothing is shared
    assert teacher.model.config.num_hidden_layers == 6


def test_what_a_configuration_says_per_layer_goes_with_the_layers(make_teacher: Callable[..., Reader]) -> None:
    teacher = make_teacher("longformer")
    student = from_teacher(teacher, 3, [1, 3, 6])
    assert student.model.config.attention_window == [2, 6, 12]
    small = fresh(teacher, num_hidden_layers=2)
    assert small.model.config.attention_window == [2, 4]
    assert fresh(teacher, num_hidden_layers=2, attention_window=[8, 8]).model.config.attention_window == [8, 8]
    assert teacher.model.config.attention_window == [2, 4, 6, 8, 10, 12]


@pytest.mark.skipif(not TRANSFORMERS_5, reason="transformers 4 has no question answering head for ModernBERT")
def test_a_modernbert_student(make_teacher: Callable[..., Reader], tmp_path: Path) -> None:
    """Its first layer has no normalisation before the attention, the others have, and each is local or global."""
    teacher = make_teacher("modernbert")
    student = from_teacher(teacher, 3, [2, 4, 6])
    types = teacher.model.config.layer_types
    assert student.model.config.layer_types == [types[1], types[3], types[5]]
    theirs, weights = teacher.model.state_dict(), student.model.state_dict()
    for name, weight in weights.items():
        number = re.match(r"model\.layers\.(\d)\.", name)
        source = name.replace(f"layers.{number[1]}.", f"layers.{2 * int(number[1]) + 1}.") if number else name
        assert torch.equal(weight, theirs[source]), name
    loaded = Reader.load(
        student.save(tmp_path / "student"), window_settings=student.window_settings, device="cpu", precision="fp32"
    )
    assert loaded.answer(QUESTION, CONTEXT, 5) == student.with_model(student.model).answer(QUESTION, CONTEXT, 5)
    small = fresh(teacher, num_hidden_layers=2)
    assert small.model.config.layer_types == types[:2]
    assert small.answer(QUESTION, CONTEXT)
    assert from_teacher(teacher, 6).answer(QUESTION, CONTEXT, 9) == teacher.answer(QUESTION, CONTEXT, 9)


def test_students_of_a_funnel(make_teacher: Callable[..., Reader]) -> None:
    teacher = make_teacher("funnel")
    with pytest.raises(DistilError, match=r"blocks.*students\.fresh with block_sizes"):
        from_teacher(teacher, 3)
    student = fresh(teacher, block_sizes=[1, 1, 1])
    assert student.model.config.num_hidden_layers == 3
    assert student.answer(QUESTION, CONTEXT)
    assert torch.equal(student.model.qa_outputs.weight, teacher.model.qa_outputs.weight)
    inside = "funnel.encoder.blocks.0.0.attention.q_head.weight"
    assert not torch.equal(student.model.state_dict()[inside], teacher.model.state_dict()[inside])
    with pytest.raises(DistilError, match="funnel has no 'num_hidden_layers'"):
        fresh(teacher, num_hidden_layers=3)


def test_a_student_takes_over_the_teachers_settings(make_teacher: Callable[..., Reader]) -> None:
    teacher = make_teacher()
    for student in (from_teacher(teacher, 2), fresh(teacher, num_hidden_layers=2)):
        for name in (
            "window_settings",
            "max_answer_length",
            "no_answer_threshold",
            "batch_size",
            "precision",
            "device",
        ):
            assert getattr(student, name) == getattr(teacher, name), name
        assert not student.model.training


@pytest.mark.parametrize("kind", [*LAYERS, "albert"])
def test_fresh_shapes(make_teacher: Callable[..., Reader], kind: str) -> None:
    teacher = make_teacher(kind)
    before = model_fingerprint(teacher.model)
    shape = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 4}
    student = fresh(teacher, **shape)
    assert {name: getattr(student.model.config, name) for name in shape} == shape
    assert student.n_parameters < teacher.n_parameters
    assert student.model.config.vocab_size == teacher.model.config.vocab_size
    assert student.answer(QUESTION, CONTEXT)
    assert model_fingerprint(teacher.model) == before


def test_fresh_weights(make_teacher: Callable[..., Reader]) -> None:
    teacher = make_teacher()
    one, again, other = fresh(teacher, seed=1), fresh(teacher, seed=1), fresh(teacher, seed=2)
    assert model_fingerprint(one.model) == model_fingerprint(again.model) != model_fingerprint(other.model)
    weights, mine = teacher.model.state_dict(), one.model.state_dict()
    same = {name for name in weights if torch.equal(weights[name], mine[name])}
    assert same == {
        name for name in weights if "encoder.layer" not in name
    }  # embeddings and head fit, layers are fresh


def test_fresh_leaves_the_random_numbers_alone(make_teacher: Callable[..., Reader]) -> None:
    teacher = make_teacher()
    torch.manual_seed(5)
    fresh(teacher)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), drawn)


@pytest.mark.parametrize(
    ("layers", "which", "message"),
    [
        (0, "uniform", "1 to 6 layers, not 0"),
        (7, "uniform", "1 to 6 layers, not 7"),
        ("3", "uniform", "have 1 to 6 layers, not '3'"),
        (True, "uniform", "have 1 to 6 layers, not True"),
        (2.0, "uniform", "have 1 to 6 layers, not 2.0"),
        (2, 5, "which must be 'uniform', 'first', 'last' or a list of layers, not 5"),
        (2, ["1", "2"], "which must be 'uniform'"),
        (2, "middle", "which must be 'uniform', 'first', 'last' or a list of layers, not 'middle'"),
        (2, [1, 2, 3], "must name 2 different layers"),
        (2, [3, 1], "in ascending order"),
        (2, [3, 3], "different layers"),
        (2, [0, 3], "between 1 and 6"),
        (2, [3, 7], "between 1 and 6"),
    ],
)
def test_cuts_that_do_not_fit(
    make_teacher: Callable[..., Reader], layers: int, which: str | Sequence[int], message: str
) -> None:
    with pytest.raises(DistilError, match=message):
        from_teacher(make_teacher(), layers, which)


def test_shapes_that_do_not_fit(make_teacher: Callable[..., Reader]) -> None:
    with pytest.raises(DistilError, match="the configuration of bert has no 'width'"):
        fresh(make_teacher(), width=8)
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
            fresh(make_teacher(), **shape)
    with pytest.raises(DistilError, match="hidden_size 9 is not a multiple of num_attention_heads 2"):
        fresh(make_teacher(), hidden_size=9)
    with pytest.raises(DistilError, match="num_hidden_layers must be a whole number of at least 1, not 'six'"):
        fresh(make_teacher(), num_hidden_layers="six")
    with pytest.raises(DistilError, match=r"no squeezebert model can be made with hidden_size=8 \("):
        fresh(make_teacher("squeezebert"), hidden_size=8)
