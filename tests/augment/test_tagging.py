"""Which tagger tags, and that it is said."""

import logging

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
    monkeypatch.setattr(nltk, "download", lambda name, quiet: asked.append(name))
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
    monkeypatch.setattr(nltk, "download", lambda name, quiet: here.append(name))
    monkeypatch.setattr(tagging, "_found", lambda: bool(here))
    assert choose_tagger("auto") == "nltk"
    assert here == ["averaged_perceptron_tagger_eng"]


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
    from pathlib import Path

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
