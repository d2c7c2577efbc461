"""hold_out: whole articles, the same ones for a seed."""

import json
from pathlib import Path
from typing import Any

import pytest

from haystack_distill.data.squad.held_out import hold_out, without_articles
from haystack_distill.data.squad.load import load_examples
from haystack_distill.errors import DistilError
from tests.conftest import squad_content


def examples(path: Path, articles: int = 10, **changed: Any):
    """Articles of four contexts and eight questions each; the contexts of an article are its own."""
    content = squad_content(articles)
    for number, article in enumerate(content["data"]):
        for paragraph in article["paragraphs"]:
            paragraph["context"] += f" This is article {number}."
        article |= changed
    path.write_text(json.dumps(content))
    return load_examples(path, cache_dir=path.parent / "cache")


def test_articles_are_held_out_as_a_whole(tmp_path: Path) -> None:
    data = examples(tmp_path / "data.json")
    train, dev = hold_out(data, 0.3, seed=1, cache_dir=tmp_path / "cache")
    assert len(set(dev["title"])) == 3
    assert len(set(train["title"])) == 7
    assert not set(dev["title"]) & set(train["title"])
    assert sorted([*train["id"], *dev["id"]]) == sorted(data["id"])
    assert list(dev["id"]) == [one for one in data["id"] if one in set(dev["id"])]  # in the order of the data
    again = hold_out(data, 0.3, seed=1, cache_dir=tmp_path / "cache")[1]
    assert list(again["id"]) == list(dev["id"])
    others = {tuple(hold_out(data, 0.3, seed=seed, cache_dir=tmp_path / "cache")[1]["id"]) for seed in range(4)}
    assert len(others) > 1


def test_without_titles_contexts_are_held_out(tmp_path: Path) -> None:
    data = examples(tmp_path / "data.json", articles=2, title="")
    train, dev = hold_out(data, 0.01, seed=3, cache_dir=tmp_path / "cache")  # one at least
    assert len(set(dev["context"])) == 1
    assert len(set(train["context"])) == 7
    train, dev = hold_out(data, 0.99, seed=3, cache_dir=tmp_path / "cache")  # one is left
    assert len(set(train["context"])) == 1


def test_what_is_unlabelled_is_not_measured_on(tmp_path: Path) -> None:
    data = examples(tmp_path / "data.json", articles=4)
    labelled = [index % 2 == 0 for index in range(len(data))]
    data = data.remove_columns("labelled").add_column("labelled", labelled)
    train, dev = hold_out(data, 0.5, seed=0, cache_dir=tmp_path / "cache")
    assert all(dev["labelled"])
    assert (len(train), len(dev)) == (16, 8)
    none = data.remove_columns("labelled").add_column("labelled", [False] * len(data))
    with pytest.raises(DistilError, match="none of the questions that dev_split holds out is labelled"):
        hold_out(none, 0.5, seed=0)


def test_other_data_without_what_was_held_out(tmp_path: Path) -> None:
    data = examples(tmp_path / "data.json")
    train, dev = hold_out(data, 0.3, seed=1, cache_dir=tmp_path / "cache")
    assert list(without_articles(data, dev, cache_dir=tmp_path / "cache")["id"]) == list(train["id"])
    assert without_articles(train, dev) is train
    untitled = examples(tmp_path / "untitled.json", title="")  # the same contexts
    left = without_articles(untitled, dev, cache_dir=tmp_path / "cache")
    assert set(left["context"]) == set(train["context"])
    with pytest.raises(DistilError, match="all articles are among those that dev_split holds out"):
        without_articles(dev, dev)


def test_what_cannot_be_divided(tmp_path: Path) -> None:
    data = examples(tmp_path / "data.json", articles=1)
    with pytest.raises(DistilError, match="of which there are 1; give dev_data instead"):
        hold_out(data, 0.5, seed=0)
    for share in (0, 1, True, "0.1"):
        with pytest.raises(DistilError, match="dev_split must be a number between 0 and 1"):
            hold_out(data, share, seed=0)  # type: ignore[arg-type]
