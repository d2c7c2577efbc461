"""Layers that run compiled: the same training, nothing left behind, and what cannot be compiled.

PyTorch's compiler captures and differentiates the layers in all tests; kernels are written in one of them, because that
takes half a minute.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, MPNetConfig, TrainerCallback

from haystack_distill import DistilError, Reader, ReaderTrainer, students
from haystack_distill.models.outputs import OutputRequest
from haystack_distill.objectives import IntermediateLayers, Labels, Method, PredictionLayer
from haystack_distill.training import compilation
from haystack_distill.training.compilation import CompiledLayers
from tests.training.helpers import MakeReader, furthest, other_family, settings, weights_of, with_gradients

Pair = Callable[[], tuple[Reader, Reader]]
CAPTURED = "aot_eager"


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Graphs that were captured, by their number of operations; no kernels are written."""
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(len(graph.graph.nodes))
        return torch._dynamo.lookup_backend(CAPTURED)(graph, inputs)

    torch._dynamo.reset()
    monkeypatch.setattr(compilation, "_BACKEND", backend)
    yield graphs
    torch._dynamo.reset()


def trained(
    reader: Reader, teacher: Reader | None, data: Path, method: Method, compile: bool, **more: Any
) -> dict[str, torch.Tensor]:
    """The weights after three steps."""
    student = reader.copy()
    chosen = settings(max_steps=3, torch_compile=compile)
    ReaderTrainer(student, None, chosen, cache_dir=data.parent / "cache").distil(teacher, data, method, **more)
    assert not any("forward" in vars(module) for module in student.model.modules())  # nothing is left behind
    return with_gradients(weights_of(student))


@pytest.mark.slow
def test_compiled_layers_learn_the_same(pair: Pair, data: Path, captured: list[int]) -> None:
    """Hidden states, which transformers collects by hooks on the layers, and answers; of student and teacher."""
    student, teacher = pair()
    method = IntermediateLayers(attention_loss_weight=0.0) + PredictionLayer(temperature=2.0)
    plain = trained(student, teacher, data, method, False)
    assert not captured
    assert furthest(plain, trained(student, teacher, data, method, True)) < 1e-5
    assert captured
    assert furthest(plain, with_gradients(weights_of(student))) > 1e-4


def test_layers_and_lengths_share_graphs(tiny_reader: MakeReader, captured: list[int]) -> None:
    model = tiny_reader(num_hidden_layers=4).model

    def states(length: int) -> tuple[torch.Tensor, ...]:
        ids = torch.arange(2 * length).view(2, length) % 50
        with torch.no_grad():
            return tuple(model(input_ids=ids, output_hidden_states=True).hidden_states)

    lengths = [9, 14, 20, 33, 47]
    plain = [states(length) for length in lengths]
    with CompiledLayers([(model, OutputRequest(hidden_states=True))]):
        found = [states(length) for length in lengths]
    # The first is for one layer and length, the next for all; transformers 5 cuts a layer in three, at its own hooks.
    assert 1 <= len(captured) <= 6
    for one, other in zip(plain, found, strict=True):
        torch.testing.assert_close(one, other)


def test_between_steps_layers_are_as_they_are(pair: Pair, data: Path, captured: list[int]) -> None:
    """In evaluations and in what a callback does: a copy that is made there is one of its own."""
    student, _ = pair()
    copies: list[Reader] = []

    class Copies(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            copies.append(student.copy())

    chosen = settings(max_steps=2, torch_compile=True)
    ReaderTrainer(student, None, chosen, cache_dir=data.parent / "cache").distil(
        None, data, Labels(), callbacks=[Copies()]
    )
    assert captured
    assert not any("forward" in vars(module) for copy in copies for module in copy.model.modules())


def test_layers_that_are_looked_into_run_as_they_are(pair: Pair, data: Path, captured: list[int]) -> None:
    student, teacher = pair()
    with CompiledLayers([(teacher.model, OutputRequest(attention_scores=(2,), query_key_value=(4,)))]):
        layers = teacher.model.bert.encoder.layer
        assert [number for number, layer in enumerate(layers, 1) if "forward" in vars(layer)] == [1, 3]
    trainer = ReaderTrainer(student, None, settings(max_steps=1, torch_compile=True))
    with pytest.raises(DistilError, match="the attention of every layer of the student"):
        trainer.distil(teacher, data, IntermediateLayers())


def test_a_teacher_of_another_kind_runs_as_it_is(pair: Pair) -> None:
    early = students.early_exit(pair()[1])
    with CompiledLayers([(early.model, OutputRequest())]):
        assert not any("forward" in vars(module) for module in early.model.modules())


def of_family(family: str, tiny_reader: MakeReader) -> Reader:
    """ALBERT, whose layers share their weights; or MPNet, whose attention is ours."""
    tokenizer = tiny_reader().tokenizer
    if family != "mpnet":
        return other_family(family, tokenizer)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(3)
    config = MPNetConfig(vocab_size=len(tokenizer), max_position_embeddings=66, pad_token_id=0, **shape)
    return tiny_reader().replace(model=AutoModelForQuestionAnswering.from_config(config), tokenizer=tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["albert", "mpnet"])
def test_families(family: str, tiny_reader: MakeReader, data: Path, captured: list[int]) -> None:
    reader = of_family(family, tiny_reader)
    plain = trained(reader, None, data, Labels(), False)
    assert furthest(plain, trained(reader, None, data, Labels(), True)) < 1e-5
    assert captured


@pytest.mark.slow
def test_written_kernels(tiny_reader: MakeReader, data: Path) -> None:
    torch._dynamo.reset()
    reader = tiny_reader(num_hidden_layers=2)
    plain = trained(reader, None, data, Labels(), False)
    assert furthest(plain, trained(reader, None, data, Labels(), True)) < 1e-4  # sums in another order
    assert furthest(plain, with_gradients(weights_of(reader))) > 1e-3
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", ["bilstm", "early_exit"])
def test_what_has_no_such_layers_is_refused_at_once(kind: str, tiny_reader: MakeReader, data: Path) -> None:
    reader = tiny_reader()
    student = students.bilstm(reader, units=8) if kind == "bilstm" else students.early_exit(reader)
    trainer = ReaderTrainer(student, None, settings(max_steps=1, torch_compile=True))
    with pytest.raises(DistilError, match="torch_compile compiles the layers of a transformer"):
        trainer.train(data)
