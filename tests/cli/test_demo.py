"""The demo from end to end, with a tiny random teacher in place of the embedded one: the steps, not the scores."""

import json
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from haystack_distill import Reader
from haystack_distill.cli import demo
from haystack_distill.data.sample import sample_path
from haystack_distill.data.squad.load import load_examples


def installed_haystack() -> int:
    """Whose pipeline this environment can run: 1 or 3."""
    try:
        return 1 if version("farm-haystack") else 3
    except PackageNotFoundError:
        return 3


@pytest.mark.slow
def test_the_demo_distils_measures_and_answers(
    tiny_reader: Callable[..., Reader], squad_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "embedded_teacher", lambda window_settings: tiny_reader(max_position_embeddings=512))
    monkeypatch.setattr(demo, "sample_path", lambda split: squad_file)
    result = demo.run_demo(haystack=installed_haystack(), output_dir=tmp_path / "reader", json=True)
    teacher, labels_only, distilled = result["models"]
    assert teacher["parameters"] > distilled["parameters"] == labels_only["parameters"]
    assert [answer["question"] for answer in result["answers"]] == list(demo.QUESTIONS)
    assert all(0 <= answer["score"] <= 1 for answer in result["answers"])
    assert json.loads((tmp_path / "reader" / "demo.json").read_text())["models"] == result["models"]
    assert Reader.load(tmp_path / "reader").n_parameters == distilled["parameters"]


def test_the_sample_is_what_it_says() -> None:
    train, dev = (load_examples(sample_path(split)) for split in ("train", "dev"))
    assert (len(train), len(dev)) == (643, 176)
    assert not set(train["title"]) & set(dev["title"])
    assert len(set(train["context"]) | set(dev["context"])) >= 80
    assert any(train["is_impossible"])
    assert any(dev["is_impossible"])
    with pytest.raises(ValueError, match="'train' or 'dev'"):
        sample_path("test")
