"""lora: which layers have updates, what hooks see of them, and the merged model in plain transformers."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForQuestionAnswering

from haystack_distill import DistilError, Reader, ReaderTrainer
from haystack_distill.models.outputs import OutputRequest, run_model
from haystack_distill.training.adaptation import adapted
from haystack_distill.training.adapters import Adapters
from haystack_distill.training.lora import Lora
from tests.training.helpers import other_family, settings

MakeReader = Callable[..., Reader]
BATCH = {"input_ids": torch.tensor([[2, 9, 8, 3, 7, 6, 3]]), "attention_mask": torch.ones(1, 7, dtype=torch.long)}


def test_without_peft(tiny_reader: MakeReader, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(DistilError, match=r"needs the package peft; pip install 'haystack-distill\[lora\]'"):
        ReaderTrainer(tiny_reader()).distil(None, data, "labels", adaptation=Lora())


def updated(reader: Reader, adaptation: Lora) -> set[str]:
    with adapted(reader.model, adaptation):
        names = {name for name, parameter in reader.model.named_parameters() if parameter.requires_grad}
    assert all(parameter.requires_grad for parameter in reader.model.parameters())
    assert {"qa_outputs.weight", "qa_outputs.bias"} <= names
    return {name.partition(".lora_")[0] for name in names if ".lora_" in name}


@pytest.mark.parametrize(("kind", "all_of_them"), [("bert", 12), ("distilbert", 12), ("electra", 12), ("albert", 6)])
def test_targets(kind: str, all_of_them: int, tokenizer) -> None:
    reader = other_family(kind, tokenizer)
    before = {name: weight.clone() for name, weight in reader.model.state_dict().items()}
    found = {target: updated(reader, Lora(rank=2, target=target)) for target in ("query_value", "attention", "all")}
    assert [len(names) for names in found.values()] == [all_of_them // 3, all_of_them * 2 // 3, all_of_them]
    after = reader.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())  # B is 0 at first


def test_hooks_see_the_adapted_queries(tiny_reader: MakeReader) -> None:
    model = tiny_reader().model
    request = OutputRequest(attention_scores=(1,), hidden_states=True)
    plain = run_model(model, BATCH, request)
    with adapted(model, Lora(rank=2, target="query_value")):
        query = model.bert.encoder.layer[0].attention.self.query
        torch.nn.init.normal_(query.lora_B["default"].weight)
        inside = run_model(model, BATCH, request)
        inside.attention_scores[1].sum().backward()
        assert query.lora_A["default"].weight.grad.abs().sum() > 0
    assert not torch.allclose(inside.attention_scores[1], plain.attention_scores[1], atol=1e-2)
    merged = run_model(model, BATCH, request)
    torch.testing.assert_close(merged.attention_scores[1], inside.attention_scores[1], atol=1e-5, rtol=1e-5)
    assert not hasattr(model, "peft_config")


def test_the_saved_reader_is_plain(tiny_reader: MakeReader, data: Path, tmp_path: Path) -> None:
    student = tiny_reader()
    trainer = ReaderTrainer(student, tmp_path / "run", settings(max_steps=3, learning_rate=1e-2))
    trainer.distil(None, data, "labels", adaptation=Lora(rank=2))
    loaded, report = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "run", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(**BATCH).start_logits, student.model(**BATCH).start_logits)


def test_what_does_not_fit(tiny_reader: MakeReader, data: Path) -> None:
    for wrong, match in (
        ({"rank": 0}, "rank"),
        ({"alpha": 0}, "alpha"),
        ({"target": "key"}, "target"),
        ({"save_only_trained": 1}, "save_only_trained"),
    ):
        with pytest.raises(DistilError, match=f"{match} must be"):
            Lora(**wrong)
    student = tiny_reader()
    with adapted(student.model, Adapters(adapter_size=2)):
        pass
    with pytest.raises(DistilError, match="has adapters, which lora cannot update"):
        ReaderTrainer(student).distil(None, data, "labels", adaptation=Lora())
