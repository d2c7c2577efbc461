"""How much layers, heads and neurons matter, against computations by hand."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from haystack_distill import DistilError, Reader
from haystack_distill.data.squad.load import load_examples
from haystack_distill.students.importance import Sample, importance_of, layer_costs, most_important_layers
from haystack_distill.students.layers import keep_layers
from haystack_distill.students.parts import heads_of, neurons_of
from haystack_distill.utils.cache import CACHE_VARIABLE
from haystack_distill.utils.model_inputs import model_inputs


def drawn(reader: Reader, data: object, size: int = 100, seed: int = 42) -> Sample:
    return Sample.draw(reader, data, size, seed)  # type: ignore[arg-type]


def losses_of(reader: Reader, sample: Sample) -> torch.Tensor:
    """The loss of every window, by the library's plain cross entropy, one window after the other."""
    found = []
    for batch, starts, ends in sample.targets():
        outputs = reader.model(**model_inputs(batch))
        for row, length in enumerate(batch["attention_mask"].sum(dim=1)):
            terms = [
                torch.nn.functional.cross_entropy(logits[row, :length], target[row])
                for logits, target in ((outputs.start_logits, starts), (outputs.end_logits, ends))
            ]
            found.append((terms[0] + terms[1]) / 2)
    return torch.stack(found)


@pytest.mark.parametrize("kind", ["bert", "albert"])
@pytest.mark.parametrize("labelled", [True, False])
def test_neurons_by_finite_differences(
    make_teacher: Callable[..., Reader], squad_file: Path, kind: str, labelled: bool
) -> None:
    reader = make_teacher(kind, layers=2)
    sample = drawn(reader, load_examples(squad_file, only=None if labelled else "questions"))
    model = reader.model = reader.model.double()
    parts = neurons_of(model)
    places = parts.find(model)
    assert len(places) == (1 if kind == "albert" else 2)  # ALBERT's layers are one
    found = importance_of(reader, parts, sample)
    for place, layer in places.items():
        expected = []
        for neuron in range(layer.in_features):
            sides = []
            for scale in (1 + 1e-5, 1 - 1e-5):  # the mask variable is a factor of the weights that take the neuron
                column = layer.weight[:, neuron].clone()
                with torch.no_grad():
                    layer.weight[:, neuron] *= scale
                    sides.append(losses_of(reader, sample))
                    layer.weight[:, neuron] = column
            expected.append(((sides[0] - sides[1]) / 2e-5).abs().sum())
        torch.testing.assert_close(
            found[place], torch.nn.functional.normalize(torch.stack(expected), dim=0), rtol=1e-3, atol=1e-6
        )
    assert not any(parameter.grad is not None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("kind", ["bert", "distilbert", "mpnet", "deberta-v2", "electra", "funnel"])
def test_heads_by_finite_differences(make_teacher: Callable[..., Reader], squad_file: Path, kind: str) -> None:
    reader = make_teacher(kind, layers=2)
    sample = drawn(reader, squad_file, size=3)
    model = reader.model = reader.model.double()
    parts = heads_of(model)
    found = importance_of(reader, parts, sample)
    width = parts.width(model.config)
    for place, layer in list(parts.find(model).items())[:2]:
        expected = []
        for head in range(layer.in_features // width):
            columns = slice(head * width, (head + 1) * width)
            sides = []
            for scale in (1 + 1e-5, 1 - 1e-5):
                before = layer.weight[:, columns].clone()
                with torch.no_grad():
                    layer.weight[:, columns] *= scale
                    sides.append(losses_of(reader, sample))
                    layer.weight[:, columns] = before
            expected.append(((sides[0] - sides[1]) / 2e-5).abs().sum())
        torch.testing.assert_close(
            found[place], torch.nn.functional.normalize(torch.stack(expected), dim=0), rtol=1e-3, atol=1e-6
        )


def test_padding_changes_nothing(make_teacher: Callable[..., Reader], squad_file: Path) -> None:
    reader = make_teacher(layers=2)
    together = importance_of(reader, neurons_of(reader.model), drawn(reader, squad_file))
    alone = reader.replace(batch_size=1)
    for place, importance in importance_of(alone, neurons_of(alone.model), drawn(alone, squad_file)).items():
        torch.testing.assert_close(importance, together[place], rtol=1e-5, atol=1e-7)


def test_the_cost_of_a_layer_by_hand(make_teacher: Callable[..., Reader], squad_file: Path) -> None:
    teacher = make_teacher(layers=3)
    labelled, unlabelled = drawn(teacher, squad_file), drawn(teacher, load_examples(squad_file, only="questions"))
    assert labelled.losses(teacher).tolist() == pytest.approx([0.0] * 8, abs=1e-6)
    student = keep_layers(teacher, [1, 3])
    expected = losses_of(student, labelled) - losses_of(teacher, labelled)
    assert layer_costs(teacher, labelled)[2] == pytest.approx(float(expected.mean()), abs=1e-5)
    divergences = []
    for batch, *logits in zip(unlabelled.batches, unlabelled.start_logits, unlabelled.end_logits, strict=True):
        for theirs, own in zip(logits, student.forward(model_inputs(batch)), strict=True):
            for row, length in enumerate(batch["attention_mask"].sum(dim=1)):
                p, q = (one[row, :length].softmax(dim=0) for one in (theirs, own))
                divergences.append(float((p * (p / q).log()).sum()))
    cost = layer_costs(teacher, unlabelled)[2]
    assert cost == pytest.approx(sum(divergences) / len(divergences), abs=1e-6)
    assert cost > 0


def test_layers_that_do_nothing_go_first(make_teacher: Callable[..., Reader], squad_file: Path) -> None:
    teacher = make_teacher(layers=4)
    layers = teacher.model.bert.encoder.layer
    for number in (1, 2):  # what it adds is nothing, and what it gets is normalised already
        for part in (layers[number].attention.output, layers[number].output):
            torch.nn.init.zeros_(part.dense.weight)
            torch.nn.init.zeros_(part.dense.bias)
    for layer in layers:
        for part in (layer.attention.output, layer.output):
            torch.nn.init.ones_(part.LayerNorm.weight)
            torch.nn.init.zeros_(part.LayerNorm.bias)
    sample = drawn(teacher, squad_file)
    costs = layer_costs(teacher, sample)
    assert costs[2] == pytest.approx(0, abs=1e-5)
    state = torch.random.get_rng_state()
    assert most_important_layers(teacher, 2, sample) == [1, 4]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert most_important_layers(teacher, 4, sample) == [1, 2, 3, 4]


def test_the_sample(
    make_teacher: Callable[..., Reader], squad_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = make_teacher(layers=2)

    def questions(seed: int) -> set[tuple[int, ...]]:
        return {
            tuple(row.tolist()) for batch in drawn(teacher, squad_file, 3, seed).batches for row in batch["input_ids"]
        }

    assert len(questions(1)) == 3
    assert questions(1) == questions(1)
    assert questions(1) != questions(2)
    for size, seed, message in ((0, 42, "importance_sample must be"), (3, -1, "seed must be")):
        with pytest.raises(DistilError, match=message):
            drawn(teacher, squad_file, size, seed)
    with monkeypatch.context() as patch:  # the examples of a recipe are in a cache of its own
        patch.setenv(CACHE_VARIABLE, "/proc/nowhere")
        assert drawn(teacher, load_examples(squad_file, cache_dir=tmp_path), 3).batches
    teacher.untrained = ("qa_outputs.weight",)
    with pytest.raises(DistilError, match="answers are random"):
        drawn(teacher, squad_file)
