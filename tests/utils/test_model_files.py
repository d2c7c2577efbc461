"""Model directories with common faults: each is reported in one sentence, whatever loads them."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from haystack_distill import DistilError, Reader, WindowSettings
from haystack_distill.models.language_model import LanguageModel
from haystack_distill.utils.model_files import count_parameters, lacks_weights, read_json_object

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 90868376\n"


WINDOWS = WindowSettings(48, 16, 16)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def change(file: Path, **entries: Any) -> None:
    """Change entries of a JSON file; None takes one out."""
    content = json.loads(file.read_text(encoding="utf-8")) | entries
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def without_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def pickled(directory: Path) -> None:
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    without_weights(directory)


def of_haystack_1(directory: Path) -> None:
    for file in directory.iterdir():
        file.unlink()
    for name in ("language_model_config.json", "prediction_head_0_config.json", "processor_config.json"):
        (directory / name).write_text("{}")
    (directory / "language_model.bin").write_bytes(b"pickle")


def adapter(directory: Path) -> None:
    without_weights(directory)
    (directory / "config.json").rename(directory / "adapter_config.json")


def sharded(directory: Path) -> None:
    without_weights(directory)
    index = {"metadata": {}, "weight_map": {"qa_outputs.weight": "model-00001-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def without_tokenizer(directory: Path) -> None:
    for file in directory.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()


def newer_tokenizer(directory: Path) -> None:
    content = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["type"] = "WordPiece2"
    content["model"]["novelty"] = True
    del content["model"]["vocab"]
    (directory / "tokenizer.json").write_text(json.dumps(content))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights are an LFS pointer": (
        lambda path: (path / "model.safetensors").write_text(LFS),
        r"model\.safetensors is a Git LFS pointer.*git lfs pull",
    ),
    "tokenizer is an LFS pointer": (
        lambda path: (path / "tokenizer.json").write_text(LFS),
        r"tokenizer\.json is a Git LFS",
    ),
    "config is an LFS pointer": (lambda path: (path / "config.json").write_text(LFS), r"config\.json is a Git LFS"),
    "weights are cut off": (
        lambda path: cut(path / "model.safetensors"),
        r"model\.safetensors cannot be read.*truncated",
    ),
    "weights are empty": (lambda path: (path / "model.safetensors").write_bytes(b""), r"model\.safetensors is empty"),
    "weights are a web page": (
        lambda path: (path / "model.safetensors").write_text("<html>Not found</html>"),
        r"model\.safetensors cannot be read",
    ),
    "config is cut off": (lambda path: cut(path / "config.json"), r"config\.json cannot be read.*truncated"),
    "config is empty": (lambda path: (path / "config.json").write_text(""), r"config\.json is empty"),
    "config is a list": (
        lambda path: (path / "config.json").write_text("[]"),
        r"config\.json does not hold a JSON object",
    ),
    "tokenizer is cut off": (lambda path: cut(path / "tokenizer.json"), r"tokenizer\.json cannot be read.*truncated"),
    "tokenizer settings are cut off": (
        lambda path: cut(path / "tokenizer_config.json"),
        "tokenizer_config.json cannot be",
    ),
    "tokenizer is newer": (newer_tokenizer, r"tokenizer\.json cannot be read by tokenizers .*upgrade"),
    "no tokenizer": (without_tokenizer, "holds no tokenizer"),
    "no kind": (lambda path: change(path / "config.json", model_type=None), r"config\.json has no model_type"),
    "unknown kind": (lambda path: change(path / "config.json", model_type="bertie"), "knows no 'bertie' models"),
    "other sizes": (
        lambda path: change(path / "config.json", hidden_size=64),
        r"has the shape \[.*\] in the weights and \[.*\] by config\.json",
    ),
    "no weights": (without_weights, "holds no weights in safetensors"),
    "a pickle": (pickled, "pytorch_model.bin is a pickle.*convert it once: python -c"),
    "a shard is missing": (sharded, "lacks model-00001-of-00002.safetensors"),
    "of Haystack 1": (of_haystack_1, r"Haystack 1's own format.*DistilFARMReader\(.*\)\.save"),
    "an adapter": (adapter, "holds an adapter"),
}


@pytest.fixture
def broken(tiny_reader: Callable[..., Reader], tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        directory = tiny_reader().save(tmp_path / "reader")
        BROKEN[name][0](directory)
        return directory

    return make


@pytest.mark.parametrize("name", BROKEN)
def test_broken_directories_are_named_in_one_sentence(broken: Callable[[str], Path], name: str) -> None:
    directory = broken(name)
    with pytest.raises(DistilError, match=BROKEN[name][1]) as reader:
        Reader.load(directory, window_settings=WINDOWS)
    assert str(directory) in str(reader.value)
    assert "\n" not in str(reader.value)
    assert len(str(reader.value)) < 700
    with pytest.raises(DistilError, match=BROKEN[name][1]):
        LanguageModel.load(directory)


def test_a_backend_needs_no_weights_but_all_else(broken: Callable[[str], Path]) -> None:
    directory = broken("tokenizer is newer")
    without_weights(directory)
    with pytest.raises(DistilError, match="upgrade"):
        Reader.load(directory, backend="onnx")


def test_a_pickle_is_converted_as_the_message_says(broken: Callable[[str], Path], tiny_reader: Any) -> None:
    directory = broken("a pickle")
    with pytest.raises(DistilError) as error:
        Reader.load(directory)
    python, option, code = shlex.split(str(error.value).partition("convert it once: ")[2])
    assert (python, option) == ("python", "-c")
    exec(code, {})
    loaded, wanted = Reader.load(directory, window_settings=WINDOWS, device="cpu"), tiny_reader()
    assert torch.equal(loaded.model.qa_outputs.weight, wanted.model.qa_outputs.weight)


def test_a_file_is_no_model_directory(tiny_reader: Callable[..., Reader], tmp_path: Path) -> None:
    with pytest.raises(DistilError, match="is a file"):
        Reader.load(tiny_reader().save(tmp_path / "reader") / "config.json")


def test_a_json_object_is_read_or_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_json_object(tmp_path, "a.json") == {"a": 1}
    assert read_json_object(tmp_path, "absent.json") is None
    for content, message in (("[]", "does not hold a JSON object: fix it"), ('{"a"', r"cannot be read \(.*\): fix it")):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(DistilError, match=message):
            read_json_object(tmp_path, "a.json", "fix it")


def test_parameters_are_counted_from_the_header(tiny_reader: Callable[..., Reader], tmp_path: Path) -> None:
    reader = tiny_reader()
    directory = reader.save(tmp_path / "reader")
    assert count_parameters(directory / "model.safetensors") == reader.n_parameters
    assert not lacks_weights(directory, "qa_outputs.")
    assert lacks_weights(directory, "lm_head.")
    assert not lacks_weights(tmp_path, "qa_outputs.")  # no files, so nothing is known to be missing
