"""The demo from end to end, with a tiny random teacher in place of the embedded one: the steps, not the scores."""

import io
import json
import re
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path

import pytest
from rich.console import Console

from haystack_distill import DistilError, Reader
from haystack_distill.cli import demo
from haystack_distill.data.sample import sample_path
from haystack_distill.data.squad.load import load_examples


@pytest.mark.slow
def test_the_demo_distils_measures_and_answers(
    tiny_reader: Callable[..., Reader],
    squad_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(demo, "embedded_teacher", lambda window_settings: tiny_reader(max_position_embeddings=512))
    monkeypatch.setattr(demo, "sample_path", lambda split: squad_file)
    monkeypatch.setattr(demo, "LAYERS", 3)
    monkeypatch.setattr(demo, "INTERMEDIATE_SIZE", 16)
    monkeypatch.setattr(demo, "QUESTIONS", {"How many masons came?": "q0-3", "Who, then, owns the glacier?": "q0-7"})
    result = demo.run_demo(output_dir=tmp_path / "reader", json=True)
    assert capsys.readouterr().out == ""
    teacher, labels_only, distilled = result["models"]
    assert teacher["parameters"] > distilled["parameters"] == labels_only["parameters"]
    assert [answer["question"] for answer in result["answers"]] == list(demo.QUESTIONS)
    assert [answer["reference"] for answer in result["answers"]] == [["forty"], []]
    for answer in result["answers"]:
        for one in (answer, answer["teacher"]):
            assert 0 <= one["score"] <= 1
            assert one["right"] == (one["answer"].lower() in answer["reference"])
    assert json.loads((tmp_path / "reader" / "demo.json").read_text())["models"] == result["models"]
    assert Reader.load(tmp_path / "reader").n_parameters == distilled["parameters"]


def test_what_cannot_end_well_is_refused_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = 3 if "farm-haystack" in {one.name for one in distributions()} else 1
    monkeypatch.setattr(demo, "train_students", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(DistilError, match=r"which is not installed here; leave --haystack out"):
        demo.run_demo(haystack=other, output_dir=tmp_path)
    monkeypatch.setattr(demo, "distributions", list)
    with pytest.raises(DistilError, match="not installed here; install farm-haystack or haystack-ai"):
        demo.run_demo(output_dir=tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(demo, "train_students", lambda *_, **__: pytest.fail("trained"))
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DistilError, match="is not empty and holds no finished demo; give another"):
        demo.run_demo(output_dir=tmp_path)


@pytest.mark.parametrize("width", [80, 160])
def test_the_table_shows_both_answers_and_which_is_right(width: int) -> None:
    answers = [
        {
            "question": "Who [really] designed it?",
            "answer": "Galileo",
            "score": 0.25,
            "right": False,
            "teacher": {"answer": "Huygens", "score": 0.5, "right": True},
            "reference": ["Christiaan Huygens", "Huygens"],
        }
    ]
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(demo._answers_table(answers))
    text = " ".join(re.sub(r"[^\w\s.,:\[\]()?]", " ", console.export_text()).split())
    assert "question teacher student right answer" in text
    assert re.search(r"Huygens.*Galileo", text)
    assert text.index("right (0.50)") < text.index("wrong (0.25)")
    for part in ("[really]", "Christiaan Huygens"):
        assert part in text


@pytest.mark.parametrize(
    ("said", "right"), [("Huygens", True), ("the Huygens.", True), ("Galileo", False), ("Huygens in 1656", False)]
)
def test_an_answer_is_right_where_it_is_an_exact_match(
    said: str,
    right: bool,
    tiny_reader: Callable[..., Reader],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def ask(directory: Path, contexts: list[str]) -> list[dict]:
        assert len(contexts) == len(set(contexts)) > 20
        assert (Path(directory) / "config.json").exists() or directory == tmp_path
        answer = said if directory == tmp_path else "1874"
        return [{"question": question, "answer": answer, "score": 0.5} for question in demo.QUESTIONS]

    monkeypatch.setattr(demo, "ask_haystack_3", ask)
    answers = demo.ask_both(3, tiny_reader(), tmp_path, sample_path("dev"))
    assert [answer["right"] for answer in answers] == [right, False, False]
    assert [answer["teacher"]["right"] for answer in answers] == [False, True, False]


def test_the_questions_are_of_the_dev_data() -> None:
    dev = {row["id"]: row for row in load_examples(sample_path("dev"))}
    for question, key in demo.QUESTIONS.items():
        assert question.startswith(dev[key]["question"].rstrip("?"))
        assert dev[key]["answers"]["text"]


def test_the_sample_is_what_it_says() -> None:
    train, dev = (load_examples(sample_path(split)) for split in ("train", "dev"))
    assert (len(train), len(dev)) == (643, 176)
    assert not set(train["title"]) & set(dev["title"])
    assert len(set(train["context"]) | set(dev["context"])) >= 80
    assert any(train["is_impossible"])
    assert any(dev["is_impossible"])
    with pytest.raises(ValueError, match="'train' or 'dev'"):
        sample_path("test")
