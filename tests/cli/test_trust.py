"""The commands `calibrate` and `agree`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from haystack_distill import Reader, WindowSettings
from haystack_distill.models.calibration import calibration_record
from tests.cli.command_line import WINDOWS, refusal, run, run_json
from tests.conftest import squad_content

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
    return directory


def test_calibrate_elsewhere_and_again_in_place(model: Path, dev_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "calibrated"
    base = ["calibrate", "--dev-data", dev_file, *WINDOWS]
    before = Reader.load(model, window_settings=CUT)
    found = run_json(*base, "--model", model, "--output-dir", out)
    assert (found["threshold_for"], found["questions"]) == ("f1", {"fitted": 8, "judged": 8})
    after = Reader.load(out, window_settings=CUT)
    torch.testing.assert_close(after.model.qa_outputs.weight, before.model.qa_outputs.weight / found["temperature"])
    assert after.no_answer_threshold == pytest.approx(found["no_answer_threshold"])
    assert not calibration_record(Reader.load(model, window_settings=CUT).model.config)
    card = (out / "README.md").read_text()
    assert card.startswith("# A model\n\n## Calibration\n\nStart and end logits were divided by")
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
    assert Reader.load(out, window_settings=CUT).no_answer_threshold == pytest.approx(again["no_answer_threshold"])
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
        ([*out, "--no-answer-threshold", "low"], "is not FLOAT or none"),
    ):
        assert message in refusal(*base, *more)
    assert "is not a directory to write to" in refusal(*base[:1], "--model", "embedded", *base[3:], "--in-place")
    assert "articles, of which there are 1" in refusal(*base[:3], "--dev-data", squad_file, *WINDOWS, *out)
    assert not (tmp_path / "out").exists()
