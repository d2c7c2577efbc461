"""Which tagger tags, and that it is said."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nltk
import pytest

from augment import tagging
from augment.tagging import choose_tagger, make_tagger
from haystack_distill import DistilError


@pytest.fixture
def without_data(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No tagger data, and none to be downloaded."""
    asked: list[str] = []
    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(nltk, "download", lambda name, **_: asked.append(name))
    return asked


def test_without_data_textblob_tags_and_the_log_says_so_once(
    without_data: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert choose_tagger("auto") == "textblob"
    assert without_data == ["averaged_perceptron_tagger_eng"]
    (record,) = caplog.records
    assert "TextBlob" in record.getMessage()


def test_nltk_without_data_is_an_error_that_names_the_remedy(without_data: list[str]) -> None:
    with pytest.raises(DistilError, match=r"python -m nltk\.downloader averaged_perceptron_tagger_eng.*textblob"):
        choose_tagger("nltk")


def test_data_is_downloaded_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    here: list[str] = []
    monkeypatch.setattr(nltk, "download", lambda name, **_: here.append(name))
    monkeypatch.setattr(tagging, "_trouble", lambda: None if here else "is not here")
    assert choose_tagger("auto") == "nltk"
    assert here == ["averaged_perceptron_tagger_eng"]


WHOLE = {
    "weights": {"bias": {"NN": 1.0, "VB": -1.0}},
    "tagdict": {"the": "DT"},
    "classes": ["NN", "VB", "DT"],
}


@pytest.fixture
def data(without_data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tagger's data, small and whole; more is not to be downloaded."""
    folder = tmp_path / "nltk_data" / "taggers" / "averaged_perceptron_tagger_eng"
    folder.mkdir(parents=True)
    for name, content in WHOLE.items():
        (folder / f"averaged_perceptron_tagger_eng.{name}.json").write_text(json.dumps(content))
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk_data")])
    # Later versions of NLTK read nothing but what lies where they look.
    monkeypatch.setenv("NLTK_DATA", str(tmp_path / "nltk_data"))
    return folder


def test_whole_data_tags(data: Path, without_data: list[str]) -> None:
    assert choose_tagger("auto") == choose_tagger("nltk") == "nltk"
    assert without_data == []
    tagger = make_tagger("nltk")
    assert tagger is not None
    assert tagger(["the", "ship"]) == ["DT", "NN"]


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "no classes", "directory", "archive"])
@pytest.mark.parametrize("part", WHOLE)
def test_half_of_nltks_data_is_none(
    damage: str, part: str, data: Path, without_data: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    file = data / f"averaged_perceptron_tagger_eng.{part}.json"
    if damage == "archive":
        shutil.rmtree(data)
        data.with_suffix(".zip").write_bytes(b"PK\3\4 and no more")
    elif damage == "directory":
        file.unlink()
        file.mkdir()
    elif damage == "missing":
        file.unlink()
    else:
        file.write_text({"cut": file.read_text()[:-3], "empty": "", "no classes": "null"}[damage])
    with caplog.at_level(logging.INFO):
        assert choose_tagger("auto") == "textblob"
    assert without_data == ["averaged_perceptron_tagger_eng"]  # it is asked for once
    assert "TextBlob" in caplog.text
    with pytest.raises(DistilError, match=r"data 'averaged_perceptron_tagger_eng', which is .*nltk\.downloader"):
        choose_tagger("nltk")


def test_a_download_that_fails_is_no_traceback(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (OSError(28, "No space left on device"), ValueError("Could not find a default download directory")):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(nltk, "download", fail)
        shutil.rmtree(data, ignore_errors=True)
        assert choose_tagger("auto") == "textblob"


def test_the_others_are_taken_as_named(without_data: list[str]) -> None:
    assert choose_tagger("textblob") == "textblob"
    assert choose_tagger("none") == "none"
    assert without_data == []
    with pytest.raises(DistilError, match="tagger must be one of auto, nltk, textblob, none"):
        choose_tagger("spacy")


def test_textblob_gives_one_tag_a_token() -> None:
    tagger = make_tagger("textblob")
    assert tagger is not None
    tokens = ["The", "cat", "/", "dog", "&", "mouse", "sat", ".", "é", "東", "🙂", "a/b", "&slash;", "-"]
    tags = tagger(tokens)
    assert len(tags) == len(tokens)
    assert tags[:2] == ["DT", "NN"]
    assert tagger([]) == []
    assert make_tagger("none") is None


@pytest.mark.real_data
def test_nltk_tags_where_its_data_is(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Path(__file__).resolve().parents[3] / "shared" / "nltk_data"
    if not shared.exists():
        pytest.skip("needs ../shared/nltk_data")
    monkeypatch.setattr(nltk.data, "path", [str(shared)])
    assert choose_tagger("auto") == "nltk"
    tagger = make_tagger("nltk")
    assert tagger is not None
    assert tagger(["The", "old", "man", "sleeps", "."]) == ["DT", "JJ", "NN", "VBZ", "."]


def test_the_array_perceptron_predicts_what_nltks_does() -> None:
    import random

    from nltk.tag.perceptron import AveragedPerceptron

    draw, tags = random.Random(0), ["DT", "JJ", "NN", "VBZ"]
    # Halves add up exactly, and often to the same sum: ties are told apart as NLTK does.
    weights = {f"f{n}": {tag: draw.choice([-1.0, -0.5, 0.5, 1.0]) for tag in draw.sample(tags, 3)} for n in range(30)}
    theirs = AveragedPerceptron(weights)
    theirs.classes = set(tags)
    ours = tagging._ArrayPerceptron(weights, set(tags))
    for _ in range(500):
        features = dict.fromkeys(draw.sample([*weights, "unknown", "other"], draw.randint(0, 9)), 1)
        assert ours.predict(features) == theirs.predict(features)


def test_words_are_tagged_where_there_is_no_home_directory() -> None:
    homeless = """
import pwd

def unknown(number):
    raise KeyError(number)

pwd.getpwuid = unknown
from augment.tagging import make_tagger
print(make_tagger("textblob")(["a", "dog"]))
"""
    names = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", homeless], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "['DT', 'NN']", done.stderr
