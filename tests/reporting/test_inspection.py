"""Descriptions of readers from their files."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from haystack_distill import DistilError, Reader
from haystack_distill.reporting.inspection import describe


def test_a_reader_is_described_from_its_files(tiny_reader: Callable[..., Reader], tmp_path: Path) -> None:
    reader = tiny_reader()
    found = describe(reader.save(tmp_path / "reader"))
    assert (found["architecture"], found["model_type"]) == ("BertForQuestionAnswering", "bert")
    assert found["parameters"] == reader.n_parameters
    assert found["shape"]["num_hidden_layers"] == 4
    assert found["fast_tokenizer"]
    assert (found["run"], found["exported"], found["unfinished_run"], found["base"]) == (None, None, False, None)


def test_trained_weights_alone_name_their_base(tiny_reader: Callable[..., Reader], tmp_path: Path) -> None:
    base = tiny_reader().save(tmp_path / "base")
    reader = Reader.load(base, window_settings=tiny_reader().window_settings)
    with torch.no_grad():
        reader.model.qa_outputs.bias += 1
    found = describe(reader.save(tmp_path / "head", only_trained=True))
    assert (found["base"], found["parameters"]) == (str(base), 2)


def test_exports_are_described_by_the_record_of_their_runtime(
    tiny_reader: Callable[..., Reader], tmp_path: Path
) -> None:
    directory = tiny_reader().save(tmp_path / "reader")
    records = {
        "onnx": {"torch": {"metrics": {"f1": 2.0}}, "onnx": {"metrics": {"f1": 2.0}}},
        # of an earlier run, which exported more
        "openvino": {"torch": {}, "onnx": {}, "onnx-int8": {}, "openvino": {"speed": 3}},
    }
    for folder, backends in records.items():
        (directory / folder).mkdir()
        (directory / folder / "export.json").write_text(json.dumps({"backends": backends}))
    assert describe(directory)["exported"] == records["onnx"] | {"openvino": {"speed": 3}}


def test_what_is_broken_is_named(tiny_reader: Callable[..., Reader], tmp_path: Path) -> None:
    directory = tiny_reader().save(tmp_path / "reader")
    (directory / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(DistilError, match="git lfs pull"):
        describe(directory)
    with pytest.raises(DistilError, match=r"holds no config\.json: give the directory of a reader"):
        describe(tmp_path / "absent")


def test_other_tensors_beside_the_weights_do_not_count(tiny_reader: Callable[..., Reader], tmp_path: Path) -> None:
    reader = tiny_reader()
    directory = reader.save(tmp_path / "reader")
    save_file({"filter": torch.zeros(7)}, directory / "task_filters.safetensors")
    assert describe(directory)["parameters"] == reader.n_parameters
