"""What Haystack 1's own end-to-end tests check of distillation: which weights learn, from models without an answer head."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

if importlib.util.find_spec("haystack") is None or importlib.util.find_spec("haystack.nodes") is None:
    pytest.skip("farm-haystack is not in this environment", allow_module_level=True)

from haystack.modeling.data_handler.processor import UnlabeledTextProcessor

from haystack_distill.integrations.farm import DistilFARMReader

STUDENT = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32}
TEACHER = {"num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 64}


@pytest.fixture
def make(tokenizer: BertTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A reader from the directory of an encoder without a head, which is then fresh; Haystack 1's tests do so too."""
    monkeypatch.chdir(tmp_path)

    def make(name: str, **shape: int) -> DistilFARMReader:
        torch.manual_seed(len(name))
        common = {"vocab_size": len(tokenizer), "num_attention_heads": 2, "max_position_embeddings": 128}
        BertModel(BertConfig(**common, **shape)).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        cut = {"max_seq_len": 48, "doc_stride": 16, "max_query_length": 16}
        return DistilFARMReader(str(tmp_path / name), use_gpu=False, num_processes=0, progress_bar=False, **cut)

    return make


def weights(reader: DistilFARMReader) -> dict[str, torch.Tensor]:
    named = reader.inferencer.model.named_parameters()
    return {name: weight.detach().clone() for name, weight in named if "weight" in name and weight.requires_grad}


@pytest.mark.parametrize("method", ["prediction_layer", "intermediate_layers", "plain_text"])
def test_all_weights_that_the_method_teaches_change(method: str, make: Callable[..., Any], squad_file: Path) -> None:
    student, teacher = make("student", **STUDENT), make("a teacher", **TEACHER)
    before = weights(student)
    arguments: dict[str, Any] = {"data_dir": squad_file.parent, "train_filename": squad_file.name}
    if method == "prediction_layer":
        student.distil_prediction_layer_from(teacher, **arguments)
    else:
        if method == "plain_text":
            text = squad_file.parent / "text.txt"
            text.write_text("Bees dance to tell their sisters where the flowers are.\n\nA glacier moves.\n")
            tokenizer = teacher.inferencer.processor.tokenizer
            arguments["processor"] = UnlabeledTextProcessor(
                tokenizer, 128, train_filename=text.name, data_dir=text.parent
            )
        student.distil_intermediate_layers_from(teacher_model=teacher, **arguments)
    after = weights(student)
    same = {name for name, weight in after.items() if torch.equal(weight, before[name])}
    # The pooler has no part in answering; layers alone teach no head.
    assert {name.rsplit("model.")[-1] for name in same if "pooler" not in name} == (
        set() if method == "prediction_layer" else {"prediction_heads.0.feed_forward.feed_forward.0.weight"}
    )
