"""adapters: where they are, what they compute, and what is trained."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.functional import gelu, linear

from haystack_distill import DistilError, Reader, ReaderTrainer
from haystack_distill.models.adapters import AdaptedLinear, adapters_of, insert_adapters
from haystack_distill.models.outputs import OutputRequest, run_model
from haystack_distill.training.adaptation import adapted
from haystack_distill.training.adapters import Adapters
from haystack_distill.utils.model_fingerprint import model_fingerprint
from tests.training.helpers import other_family, settings

MakeReader = Callable[..., Reader]


def test_the_equation_by_hand() -> None:
    dense = torch.nn.Linear(3, 4)
    layer = AdaptedLinear(dense, 2)
    for parameter in (layer.down.weight, layer.up.weight):
        assert 0 < parameter.abs().max() <= 0.02
    torch.nn.init.normal_(layer.up.weight)
    x = torch.randn(5, 3)
    y = dense(x)
    expected = y + linear(gelu(linear(y, layer.down.weight, layer.down.bias)), layer.up.weight, layer.up.bias)
    torch.testing.assert_close(layer(x), expected)
    assert layer.weight is dense.weight


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert", "albert"])
def test_two_in_each_layer_near_the_identity(kind: str, tokenizer) -> None:
    reader = other_family(kind, tokenizer)
    batch = dict(reader.tokenizer("Who?", "Ada.", return_tensors="pt"))
    batch.pop("token_type_ids")
    request = OutputRequest(hidden_states=True, attention_scores=(1, 2), logits=True)
    plain = run_model(reader.model, batch, request)
    with adapted(reader.model, Adapters(adapter_size=4)):
        trained = {name for name, parameter in reader.model.named_parameters() if parameter.requires_grad}
    found = adapters_of(reader.model)
    assert len(found) == (2 if kind == "albert" else 4)  # its layers share one
    inside = {f"{name}.{part}" for name in found for part in ("down.weight", "up.bias")}
    assert inside | {"qa_outputs.weight"} <= trained
    assert not {f"{name}.weight" for name in found} & trained
    assert all("norm" in name.lower() or "qa_outputs" in name or ".down." in name or ".up." in name for name in trained)
    outputs = run_model(reader.model, batch, request)
    torch.testing.assert_close(outputs.start_logits, plain.start_logits, atol=1e-2, rtol=0)
    for module in found.values():
        torch.nn.init.normal_(module.up.bias)
    changed = run_model(reader.model, batch, request)
    assert not torch.allclose(changed.attention_scores[2], plain.attention_scores[2], atol=1e-2)
    assert not torch.allclose(changed.hidden_states[1], plain.hidden_states[1], atol=1e-2)


def test_copies_fingerprints_and_a_second_run(tiny_reader: MakeReader, data: Path) -> None:
    student = tiny_reader()
    before = model_fingerprint(student.model)
    trainer = ReaderTrainer(student, None, settings(max_steps=2))
    trainer.distil(None, data, "labels", adaptation=Adapters(adapter_size=4))
    copied = student.copy()
    assert model_fingerprint(copied.model) == model_fingerprint(student.model) != before
    trainer.distil(None, data, "labels", adaptation=Adapters(adapter_size=4))  # the same adapters, trained further
    assert len(adapters_of(student.model)) == 8
    assert model_fingerprint(copied.model) != model_fingerprint(student.model)
    with pytest.raises(DistilError, match="has adapters of size 4, not 64; set adapter_size"):
        trainer.distil(None, data, "labels", adaptation=Adapters())


def test_what_does_not_fit(tiny_reader: MakeReader) -> None:
    with pytest.raises(DistilError, match="adapter_size must be"):
        Adapters(adapter_size=0)
    reader = tiny_reader()
    insert_adapters(reader.model, ["bert.encoder.layer.0.output.dense"], 2)
    assert isinstance(reader.model.bert.encoder.layer[0].output.dense, AdaptedLinear)
