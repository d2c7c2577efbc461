"""Pruned students are plain models: their weights are the teacher's without the least important parts."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForQuestionAnswering

from haystack_distill import DistilError, Reader, ReaderTrainer, TrainingSettings, WindowSettings, students
from haystack_distill.data.squad.load import load_examples
from haystack_distill.models.language_model import LanguageModel
from haystack_distill.objectives import IntermediateLayers
from haystack_distill.students.importance import Sample, importance_of
from haystack_distill.students.parts import feed_forward_size, keep_parts, neurons_of, require_free_heads
from haystack_distill.students.pruning import half_shape, most, narrowed
from haystack_distill.utils.model_fingerprint import model_fingerprint
from haystack_distill.utils.model_inputs import model_inputs
from haystack_distill.utils.transformers_compat import TRANSFORMERS_5

FAMILIES = [
    "bert",
    "roberta",
    "distilbert",
    "electra",
    "albert",
    "mpnet",
    "xlm-roberta",
    "deberta-v2",
    "big_bird",
    "mobilebert",
    "funnel",
    *(["modernbert", "jina_embeddings_v3"] if TRANSFORMERS_5 else []),  # transformers 4 has no such readers
]

FREE_HEADS = ["funnel", *(["jina_embeddings_v3"] if TRANSFORMERS_5 else [])]


def logits_of(reader: Reader, file: Path) -> list[torch.Tensor]:
    sample = Sample.draw(reader, file, 4, 1)
    return [*sample.start_logits, *sample.end_logits]


@pytest.mark.parametrize("kind", FAMILIES)
def test_neurons_that_nothing_reads_are_left_out(
    make_teacher: Callable[..., Reader], squad_file: Path, tmp_path: Path, kind: str
) -> None:
    teacher = make_teacher(kind, layers=2)
    useful = torch.arange(1, 24, 3)  # 8 of 24
    for layer in neurons_of(teacher.model).find(teacher.model).values():
        with torch.no_grad():
            layer.weight[:, [number for number in range(24) if number not in useful.tolist()]] = 0
    before, expected = model_fingerprint(teacher.model), logits_of(teacher, squad_file)
    student = students.pruned(teacher, squad_file, intermediate_size=8, importance_sample=4)
    assert model_fingerprint(teacher.model) == before
    assert student.n_parameters < teacher.n_parameters
    torch.testing.assert_close(logits_of(student, squad_file), expected)
    # A plain directory: the configuration that it is written with is that of the weights.
    directory = student.save(tmp_path / "student")
    batch = Sample.draw(student, squad_file, 2, 1).batches[0]
    plain = AutoModelForQuestionAnswering.from_pretrained(directory)
    with torch.no_grad():
        found = plain(**model_inputs(batch)).start_logits
    torch.testing.assert_close(found, student.forward(model_inputs(batch))[0])
    name = {"distilbert": "hidden_dim", "funnel": "d_inner"}.get(kind, "intermediate_size")
    assert json.loads((directory / "config.json").read_text())[name] == 8


def test_the_most_important_remain(make_teacher: Callable[..., Reader], squad_file: Path) -> None:
    teacher = make_teacher(layers=3)
    student = students.pruned(teacher, squad_file, layers=2, which=[1, 3], intermediate_size=5)
    cut = students.from_teacher(teacher, 2, [1, 3])
    importance = importance_of(cut, neurons_of(cut.model), Sample.draw(teacher, squad_file, 100, 42))
    for number, (place, values) in enumerate(importance.items()):
        kept = sorted(sorted(range(24), key=lambda neuron: -values[neuron])[:5])
        assert place == f"bert.encoder.layer.{number}"
        theirs, own = cut.model.get_submodule(place), student.model.get_submodule(place)
        assert torch.equal(own.intermediate.dense.weight, theirs.intermediate.dense.weight[kept])
        assert torch.equal(own.intermediate.dense.bias, theirs.intermediate.dense.bias[kept])
        assert torch.equal(own.output.dense.weight, theirs.output.dense.weight[:, kept])
        assert torch.equal(own.output.dense.bias, theirs.output.dense.bias)
        assert torch.equal(own.attention.self.query.weight, theirs.attention.self.query.weight)
    assert most(torch.tensor([0.5, 0.1, 0.5, 0.5]), 2).tolist() == [0, 2]


def test_it_is_deterministic_and_takes_unlabelled_questions(
    make_teacher: Callable[..., Reader], squad_file: Path
) -> None:
    teacher = make_teacher(layers=3)

    def fingerprint(data: object, seed: int = 42) -> str:
        student = students.pruned(teacher, data, layers=2, intermediate_size=6, importance_sample=2, seed=seed)  # type: ignore[arg-type]
        return model_fingerprint(student.model)

    assert fingerprint(squad_file) == fingerprint(str(squad_file))
    assert fingerprint(squad_file) != fingerprint(squad_file, seed=3)
    assert fingerprint(squad_file) != fingerprint(load_examples(squad_file, only="questions"))


@pytest.mark.parametrize("kind", FREE_HEADS)
def test_heads_where_their_size_is_free(
    make_teacher: Callable[..., Reader], squad_file: Path, tmp_path: Path, kind: str
) -> None:
    """Heads that nothing reads are left out, and the others keep their size."""
    teacher = make_teacher(kind, layers=2)
    for name, module in teacher.model.named_modules():
        if name.endswith(("post_proj", "o_proj")):
            with torch.no_grad():
                module.weight[:, :8] = 0  # the first of two heads
    student = students.pruned(teacher, squad_file, heads=1)
    names = ("n_head", "d_head") if kind == "funnel" else ("num_attention_heads", "head_dim")
    assert [getattr(student.model.config, name) for name in names] == [1, 8]
    torch.testing.assert_close(logits_of(student, squad_file), logits_of(teacher, squad_file))
    loaded = Reader.load(student.save(tmp_path / "student"), window_settings=teacher.window_settings, device="cpu")
    torch.testing.assert_close(logits_of(loaded, squad_file), logits_of(student, squad_file))


@pytest.mark.parametrize("kind", [*(kind for kind in FAMILIES if kind not in FREE_HEADS), "longformer"])
def test_heads_where_their_size_is_not_free(make_teacher: Callable[..., Reader], squad_file: Path, kind: str) -> None:
    with pytest.raises(DistilError, match=f"a '{kind}' model cannot have fewer heads .*; set intermediate_size or"):
        students.pruned(make_teacher(kind, layers=2), squad_file, heads=1)


def test_layers_by_importance(make_teacher: Callable[..., Reader], squad_file: Path) -> None:
    teacher = make_teacher(layers=3)
    cut = students.from_teacher(teacher, 2, "importance", data=squad_file, importance_sample=4)
    assert model_fingerprint(cut.model) == model_fingerprint(
        students.pruned(teacher, squad_file, layers=2, importance_sample=4).model
    )
    choices = [students.from_teacher(teacher, 2, kept) for kept in ([1, 2], [1, 3], [2, 3])]
    sample = Sample.draw(teacher, squad_file, 4, 42)
    best = min(choices, key=lambda student: float(sample.losses(student).mean()))
    assert model_fingerprint(best.model) == model_fingerprint(cut.model)
    albert = make_teacher("albert", layers=3)  # nothing to choose: all layers are the same
    assert students.from_teacher(albert, 2, "importance", data=squad_file).model.config.num_hidden_layers == 2


def test_a_pruned_student_learns_layer_by_layer(
    tiny_reader: Callable[..., Reader], squad_file: Path, tmp_path: Path
) -> None:
    teacher = tiny_reader()
    student = students.pruned(teacher, squad_file, layers=2, intermediate_size=16)
    before = model_fingerprint(student.model)
    settings = TrainingSettings(max_steps=1, batch_size=4, progress=False)
    result = ReaderTrainer(student, tmp_path / "run", settings).distil(teacher, squad_file, IntermediateLayers())
    loaded = Reader.load(result.directory, window_settings=WindowSettings(48, 16, 16), device="cpu")
    assert model_fingerprint(loaded.model) != before
    assert (loaded.model.config.intermediate_size, loaded.model.config.num_hidden_layers) == (16, 2)


@pytest.mark.parametrize("kind", ["bert", "longformer"])
def test_the_shape_alone(make_teacher: Callable[..., Reader], tmp_path: Path, kind: str) -> None:
    teacher = make_teacher(kind, layers=2)
    student = narrowed(teacher, 8)
    assert student.model.config.intermediate_size == 8
    loaded = AutoModelForQuestionAnswering.from_pretrained(student.save(tmp_path / "student"))
    own = student.model.state_dict()
    assert all(torch.equal(weight, own[name]) for name, weight in loaded.state_dict().items())


def test_an_architecture_without_such_layers(make_teacher: Callable[..., Reader]) -> None:
    teacher = make_teacher("squeezebert", layers=2)
    with pytest.raises(DistilError, match="the feed-forward layers of a 'squeezebert' model"):
        narrowed(teacher, 8)
    assert feed_forward_size(teacher.model) is None
    assert feed_forward_size(make_teacher("distilbert", layers=2).model) == 24


def test_refused(make_teacher: Callable[..., Reader], squad_file: Path) -> None:
    teacher = make_teacher(layers=2)
    for options, message in (
        ({}, "nothing is pruned"),
        ({"layers": 2, "which": "importance"}, "nothing is pruned, as the teacher has 2 layers"),
        (
            {"intermediate_size": 24},
            "intermediate_size must be a whole number from 1 to 23, fewer than the teacher's 24",
        ),
        ({"intermediate_size": 0}, "intermediate_size must be"),
        ({"intermediate_size": True}, "intermediate_size must be"),
        ({"layers": 3}, "1 to 2 layers, not 3"),
        ({"which": "uniform", "intermediate_size": 8}, "which chooses among the layers"),
        ({"layers": 1, "which": "best"}, "which must be"),
        ({"layers": 1, "which": "last"}, "data has no effect where"),
        ({"intermediate_size": 8, "importance_sample": 0}, "importance_sample must be"),
    ):
        with pytest.raises(DistilError, match=message):
            students.pruned(teacher, squad_file, **options)  # type: ignore[arg-type]
    with pytest.raises(DistilError, match="heads must be a whole number from 1 to 1"):
        students.pruned(make_teacher("funnel", layers=2), squad_file, heads=2)
    with pytest.raises(DistilError, match="must answer questions; give a reader"):
        students.pruned(LanguageModel.of(teacher), squad_file, layers=1)  # type: ignore[arg-type]
    with pytest.raises(DistilError, match="must answer questions; give a reader"):
        students.from_teacher(LanguageModel.of(teacher), 1, "importance", data=squad_file)
    with pytest.raises(DistilError, match="give data, or another which"):
        students.from_teacher(teacher, 1, "importance")
    with pytest.raises(DistilError, match="data has no effect unless"):
        students.from_teacher(teacher, 1, "uniform", data=squad_file)
    layer = teacher.model.bert.encoder.layer
    layer[1].output.dense = torch.nn.Linear(30, 16)  # not what the configuration has
    with pytest.raises(DistilError, match="cannot be made narrower; cut layers"):
        students.pruned(teacher, squad_file, intermediate_size=8)


def test_a_model_of_no_such_size(make_teacher: Callable[..., Reader]) -> None:
    teacher = make_teacher(layers=2)
    parts = neurons_of(teacher.model)
    uneven = {place: torch.arange(number) for number, place in enumerate(parts.find(teacher.model), start=3)}
    with pytest.raises(DistilError, match="cannot have intermediate_size=3 alone"):
        keep_parts(teacher, parts, uneven)


PAGE = Path(__file__).parents[2] / "docs" / "students.md"
ONLY_5 = ("modernbert", "jina_embeddings_v3")


def test_the_table_of_architectures(make_teacher: Callable[..., Reader]) -> None:
    lines = PAGE.read_text(encoding="utf-8").split("| family |")[1].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    page = {re.findall("`(.+?)`", family)[0]: cells for family, *cells in rows}
    assert {name for name, (row, *_) in zip(page, rows, strict=True) if "transformers 5" in row} == set(ONLY_5)
    assert page.keys() >= {*FAMILIES, "longformer", "squeezebert"}
    for kind, cells in page.items():
        if kind in ONLY_5 and not TRANSFORMERS_5:
            continue
        teacher = make_teacher(kind, layers=4)
        found = []
        for act in (
            lambda one: students.from_teacher(one, 2),
            lambda one: narrowed(one, 8),
            lambda one: require_free_heads(one.model),
        ):
            try:
                act(teacher)
                found.append("yes")
            except DistilError:
                found.append("no")
        assert found == cells, kind


@pytest.mark.parametrize(
    ("layers", "neurons", "width", "expected"),
    [
        (6, 1536, 384, (5, 384)),  # these two were measured
        (12, 3072, 768, (10, 896)),
        (24, 4096, 1024, (20, 1216)),
        (3, 64, 32, (2, 16)),
        (1, 8, 32, (1, 2)),
        (1, 1, 32, None),
    ],
)
def test_a_shape_about_as_fast_as_half_the_layers(
    tiny_reader: Callable[..., Reader], layers: int, neurons: int, width: int, expected: tuple[int, int] | None
) -> None:
    teacher = tiny_reader(num_hidden_layers=1, intermediate_size=neurons)
    teacher.model.config.num_hidden_layers, teacher.model.config.hidden_size = layers, width
    assert half_shape(teacher) == expected


def test_no_such_shape_where_neurons_cannot_be_fewer(tiny_reader: Callable[..., Reader]) -> None:
    assert half_shape(students.bilstm(tiny_reader(), embedding_size=12, units=8)) is None
