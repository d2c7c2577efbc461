"""The commands `calibrate` and `agree`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from haystack_distill import Reader, WindowSettings
from haystack_distill.models.calibration import calibration_record, stored_threshold
from haystack_distill.reporting.card_sections import add_section, read_card
from tests.cli.command_line import WINDOWS, refusal, run, run_json
from tests.conftest import CONTEXTS, squad_content

CUT = WindowSettings(48, 16, 16)


@pytest.fixture
def dev_file(tmp_path: Path) -> Path:
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(squad_content(repeat=2)), encoding="utf-8")
    return path


@pytest.fixture
def model(tiny_reader: Callable[..., Reader], tmp_path: Path) -> Path:
    directory = tiny_reader(seed=3, initializer_range=0.4).save(tmp_path / "model")
    (directory / "README.md").write_text("# A model\n\n## Limits\n\n- Some.\n", encoding="utf-8")
    add_section(directory, read_card(directory) or "", "int8", "| F1 of | other weights |\n")  # of an earlier export
    return directory


def test_calibrate_elsewhere_and_again_in_place(model: Path, dev_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "calibrated"
    base = ["calibrate", "--dev-data", dev_file, *WINDOWS]
    before = Reader.load(model, window_settings=CUT)
    assert "## int8" in (model / "README.md").read_text()
    found = run_json(*base, "--model", model, "--output-dir", out)
    assert (found["threshold_for"], found["questions"]) == ("f1", {"fitted": 8, "judged": 8})
    after = Reader.load(out, window_settings=CUT)
    torch.testing.assert_close(after.model.qa_outputs.weight, before.model.qa_outputs.weight / found["temperature"])
    assert stored_threshold(after.model.config) == pytest.approx(found["no_answer_threshold"])
    assert not calibration_record(Reader.load(model, window_settings=CUT).model.config)
    card = (out / "README.md").read_text()
    assert "elsewhere in this card were measured before that" in card
    assert card.startswith(
        "# A model\n\n## Calibration\n<!-- written by haystack-distill -->\n\nStart and end logits were divided by"
    )
    assert card.endswith("\n\n## Limits\n\n- Some.\n")
    numbers = json.loads((out / "calibration.json").read_text())
    assert numbers["after"]["f1"] == found["after"]["f1"]
    page = (out / "calibration.html").read_text()
    assert "Reliability of the score" in page
    assert str(tmp_path) not in page
    metrics = run_json("evaluate", "--model", out, "--data", dev_file, *WINDOWS)["metrics"]
    assert metrics == Reader.load(out, window_settings=CUT).evaluate(dev_file)
    assert run_json("info", out)["calibration"]["temperature"] == found["temperature"]

    (out / "onnx").mkdir()
    again = run_json(*base, "--model", out, "--in-place", "--threshold-for", "none", "--held-out", 0.4, "--seed", 1)
    assert again["total_temperature"] == pytest.approx(found["temperature"] * again["temperature"])
    assert again["threshold_for"] is None
    assert again["no_answer_threshold"] == pytest.approx(found["no_answer_threshold"] / again["temperature"])
    card = (out / "README.md").read_text()
    assert card.count("## Calibration") == 1
    assert "with those of earlier calibrations" in card
    config = Reader.load(out, window_settings=CUT).model.config
    assert stored_threshold(config) == pytest.approx(again["no_answer_threshold"])
    assert "temperature" in run("info", out).stdout


def test_what_calibrate_refuses(model: Path, dev_file: Path, squad_file: Path, tmp_path: Path) -> None:
    base = ["calibrate", "--model", model, "--dev-data", dev_file, *WINDOWS]
    out = ["--output-dir", tmp_path / "out"]
    for more, message in (
        ([], "no place for the calibrated reader; give --output-dir, or --in-place"),
        (["--output-dir", model], "is the reader itself; add --in-place"),
        (["--output-dir", tmp_path], "is not empty"),
        (["--in-place", *out], "two places for one reader"),
        (["--in-place", "--overwrite"], "--overwrite has no effect with --in-place"),
        ([*out, "--held-out", 1.5], "held_out must be a number between 0 and 1"),
        ([*out, "--threshold-for", "em"], "is not one of f1, exact, none"),
    ):
        assert message in refusal(*base, *more)
    assert "is not a directory to write to" in refusal(*base[:1], "--model", "embedded", *base[3:], "--in-place")
    assert "articles, of which there are 1" in refusal(*base[:3], "--dev-data", squad_file, *WINDOWS, *out)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    rows = [{"question": "Who <wrote> it?", "context": text} for text in CONTEXTS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_agree_is_a_gate(model: Path, student_dir: Path, questions: Path, squad_file: Path, tmp_path: Path) -> None:
    same = ["agree", "--model", model, "--against", model, *WINDOWS]
    found = run_json(*same, "--data", questions, "--data", squad_file, "--at-least", 1)
    assert (found["questions"], found["exact"], found["f1"], found["passed"]) == (12, 1, 1, True)
    base = ["agree", "--model", student_dir, "--against", model, *WINDOWS, "--data", questions, "--no-allow-no-answer"]
    found = run_json(*base)
    assert found["passed"] is None
    assert 0 <= found["exact"] <= found["f1"] < 1
    below = run(*base, "--at-least", 0.95, "--by", "exact", "--output-dir", tmp_path / "page", "--json")
    assert below.exit_code == 1
    assert f"The agreement in exact, {found['exact']:.4f}, is below --at-least 0.95." in below.stderr
    assert json.loads(below.stdout)["passed"] is False
    page = (tmp_path / "page" / "agreement.html").read_text()
    assert "Who &lt;wrote&gt; it?" in page
    assert str(tmp_path) not in page
    kept = json.loads((tmp_path / "page" / "agreement.json").read_text())
    assert kept["f1"] == found["f1"]
    weights = [one["weight"] for one in kept["differences"]]
    assert weights == sorted(weights, reverse=True)
    assert kept["differences"][0]["context"] in CONTEXTS
    assert run(*base, "--at-least", 0).exit_code == 0


def test_readers_in_directories_of_one_name_get_names_of_their_own(
    model: Path, student_dir: Path, questions: Path, tmp_path: Path
) -> None:
    """Recipes write each reader into a directory called `reader`."""
    for run_name, source in (("first", model), ("second", student_dir)):
        shutil.copytree(source, tmp_path / run_name / "reader")
    readers = ["--model", tmp_path / "second" / "reader", "--against", tmp_path / "first" / "reader", *WINDOWS]
    run_json("agree", *readers, "--data", questions, "--output-dir", tmp_path / "page")
    kept = json.loads((tmp_path / "page" / "agreement.json").read_text())
    assert (kept["student"], kept["teacher"]) == ("second/reader", "first/reader")


def test_agree_at_the_speed_that_a_reader_is_served_with(model: Path, questions: Path, tmp_path: Path) -> None:
    exits = tmp_path / "exits"
    assert run("student", "--teacher", model, "--early-exit", "--output-dir", exits).exit_code == 0
    base = ["agree", "--model", exits, "--against", model, *WINDOWS, "--data", questions]
    assert run_json(*base)["f1"] == 1
    assert run_json(*base, "--speed", 1)["f1"] < 1
    assert "no early exits, so speed=1.0" in refusal(*base[:1], "--model", model, *base[3:], "--speed", 1)


def test_what_agree_refuses(model: Path, questions: Path, tmp_path: Path) -> None:
    base = ["agree", "--model", model, "--against", model, *WINDOWS, "--data", questions]
    for more, message in (
        (["--at-least", 95], "--at-least must be a number from 0 to 1, not 95.0"),
        (["--by", "exact"], "--by has no effect without a gate; add --at-least"),
        (["--by", "em", "--at-least", 1], "is not one of f1, exact"),
        (["--no-allow-no-answer", "--no-answer-threshold", 1], "has no effect with --no-allow-no-answer"),
        (["--backend", "onnx"], "no onnx/model.onnx"),
        (["--data", tmp_path / "absent.csv"], "no such file"),
    ):
        assert message in refusal(*base, *more)
