"""quantisation_aware: a student that is trained for int8 loses less in it, and is saved as a plain reader."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForQuestionAnswering

from haystack_distill import DistilError, Reader, ReaderTrainer, students
from haystack_distill.models.fake_quantisation import Int8Embedding, Int8Linear
from haystack_distill.models.outputs import OutputRequest, run_model
from haystack_distill.objectives import IntermediateLayers
from haystack_distill.students.layers import dense_layers
from haystack_distill.training.adaptation import adapted
from haystack_distill.training.quantisation_aware import QuantisationAware
from tests.training.helpers import other_family, settings

MakeReader = Callable[..., Reader]
BATCH = {"input_ids": torch.tensor([[2, 9, 8, 3, 7, 6, 3]]), "attention_mask": torch.ones(1, 7, dtype=torch.long)}


@pytest.mark.parametrize("kind", ["bert", "distilbert", "electra", "albert"])
def test_dense_layers_and_word_embeddings_round_inside_and_are_plain_afterwards(kind: str, tokenizer) -> None:
    model = other_family(kind, tokenizer).model
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    plain = run_model(model, BATCH).start_logits
    with adapted(model, QuantisationAware()):
        rounding = {name for name, module in model.named_modules() if isinstance(module, Int8Linear)}
        assert rounding == set(dense_layers(model))
        assert isinstance(model.get_input_embeddings(), Int8Embedding)
        assert model.state_dict().keys() == before.keys()
        inside = run_model(model, BATCH).start_logits
    assert not torch.equal(inside, plain)
    torch.testing.assert_close(inside, plain, atol=0.1, rtol=0.1)
    assert not any(isinstance(module, (Int8Linear, Int8Embedding)) for module in model.modules())
    assert type(model.get_submodule(dense_layers(model)[0])) is nn.Linear
    assert torch.equal(run_model(model, BATCH).start_logits, plain)


def test_hooks_see_the_rounding_queries(tiny_reader: MakeReader) -> None:
    model = tiny_reader().model
    request = OutputRequest(attention_scores=(1,))
    plain = run_model(model, BATCH, request).attention_scores[1]
    with adapted(model, QuantisationAware()):
        assert not torch.equal(run_model(model, BATCH, request).attention_scores[1], plain)


def test_a_run_saves_a_plain_reader(tiny_reader: MakeReader, data: Path, tmp_path: Path) -> None:
    teacher = tiny_reader()
    student = students.from_teacher(teacher, layers=2)
    trainer = ReaderTrainer(student, tmp_path / "run", settings(max_steps=3, learning_rate=1e-2))
    trainer.distil(teacher, data, IntermediateLayers(), adaptation=QuantisationAware())
    loaded, report = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "run", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(**BATCH).start_logits, student.model(**BATCH).start_logits)
    other = students.from_teacher(teacher, layers=2)
    ReaderTrainer(other, None, settings(max_steps=3, learning_rate=1e-2)).distil(teacher, data, IntermediateLayers())
    learnt = [reader.model.state_dict()["bert.encoder.layer.0.output.dense.weight"] for reader in (student, other)]
    assert not torch.equal(*learnt)


def test_what_does_not_fit(tiny_reader: MakeReader) -> None:
    for wrong in (6, 9, True, "8"):
        with pytest.raises(DistilError, match="weight_bits must be 7 or 8"):
            QuantisationAware(wrong)  # type: ignore[arg-type]
    recurrent = students.bilstm(tiny_reader(), units=8, embedding_size=8)
    with pytest.raises(DistilError, match="no dense layers, so quantisation_aware has no effect; choose"):
        QuantisationAware().prepare(recurrent.model)
