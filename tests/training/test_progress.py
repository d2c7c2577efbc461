"""What a training run shows: a bar or plain lines with the loss, and never Trainer's dictionaries."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from haystack_distill import DistilError, Reader, ReaderTrainer, TrainingSettings
from haystack_distill.utils import console

SETTINGS = TrainingSettings(n_epochs=2, batch_size=4, precision="fp32", log_every=1)


def distil(tiny_reader: Callable[..., Reader], data: Path, directory: Path, **settings: object) -> None:
    chosen = TrainingSettings(**{**vars(SETTINGS), **settings})  # type: ignore[arg-type]
    trainer = ReaderTrainer(tiny_reader(seed=1, num_hidden_layers=2), settings=chosen, cache_dir=directory)
    trainer.distil_prediction_layer_from(tiny_reader(), data, data)


def test_one_plain_line_for_each_log_event_where_there_is_no_terminal(
    tiny_reader: Callable[..., Reader], squad_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    distil(tiny_reader, squad_file, tmp_path)
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("step ")]
    steps = [line for line in lines if "loss" in line]
    assert [line.split()[1].split("/")[0] for line in steps] == [str(step + 1) for step in range(len(steps))]
    assert len(steps) == int(steps[0].split()[1].split("/")[1])
    for line in steps:
        for part in (" loss ", "(distillation ", ", labels ", " windows/s"):
            assert part in line, line
    assert all(" left" in line for line in steps[:-1])
    assert sum(" evaluation: exact " in line and ", F1 " in line for line in lines) == 2
    assert out == ""
    assert "{" not in err
    assert "it/s" not in err


def test_a_bar_in_a_terminal(
    tiny_reader: Callable[..., Reader],
    squad_file: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = io.StringIO()
    terminal = Console(file=written, force_terminal=True, width=140, color_system=None)
    monkeypatch.setattr(console, "STDERR", terminal)
    monkeypatch.setattr("haystack_distill.utils.progress._DRAWN_EVERY", 0.0)
    distil(tiny_reader, squad_file, tmp_path)
    found = written.getvalue()
    for part in (
        "teacher",
        "prediction_layer",
        "━",
        "steps",
        "loss ",
        "(distillation ",
        "windows/s",
        " left",
        "evaluation: exact",
    ):
        assert part in found, part
    assert "{" not in found
    out, err = capfd.readouterr()
    assert out == ""
    assert "{" not in err


def test_without_progress_nothing_is_shown(
    tiny_reader: Callable[..., Reader], squad_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    distil(tiny_reader, squad_file, tmp_path, progress=False)
    assert "step" not in "".join(capfd.readouterr())


def test_a_run_that_fails_ends_its_bar(
    tiny_reader: Callable[..., Reader], squad_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.StringIO()
    monkeypatch.setattr(console, "STDERR", Console(file=written, force_terminal=True, width=100))
    with pytest.raises(DistilError):
        distil(tiny_reader, squad_file, tmp_path, learning_rate=1e30, max_grad_norm=0.0, n_epochs=20)
    assert written.getvalue().count("\x1b[?25h") >= 2  # the teacher's bar and this one gave the cursor back
