"""The command line as a whole: help, how commands end, and what is true of every command."""

import dataclasses
import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from haystack_distill import Reader, TrainingSettings, WindowSettings
from haystack_distill.cli.app import app
from tests.cli.command_line import QUICK, WINDOWS, environment, refusal, run, run_json

COMMANDS = [
    "train",
    "student",
    "distil",
    "evaluate",
    "ask",
    "info",
    "demo",
    "compare",
    "recipe",
    "report",
    "push",
    "export",
    "prune",
    "suggest",
    "profile",
    "calibrate",
    "agree",
]
TRAINING_COMMANDS = ["train", "distil"]


@pytest.mark.parametrize("command", TRAINING_COMMANDS)
def test_help_names_every_training_setting(command: str) -> None:
    text = run(command, "--help").stdout
    for field in dataclasses.fields(TrainingSettings):
        flag = "--" + field.name.replace("_", "-")
        assert flag in text
        if isinstance(field.default, bool):
            assert "--no-" + flag[2:] in text
    assert "--max-seq-len" in text
    assert "--doc-stride" in text
    assert "Passes over the windows." in text  # the docstring of TrainingSettings


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_explains_every_option(command: str) -> None:
    text = run(command, "--help").stdout
    assert f"haystack-distill {command}" in text.partition("Example")[2]
    made = typer.main.get_command(app).commands[command]
    for parameter in made.params:
        assert parameter.help, parameter.name


def test_help_names_the_commands() -> None:
    text = run("--help").stdout
    assert all(command in text for command in COMMANDS)


def test_version() -> None:
    from haystack_distill import __version__

    assert run("--version").stdout.strip() == f"haystack-distill {__version__}"


def all_commands(command: Any, *names: str) -> Iterator[tuple[str, ...]]:
    """The names of a command and of all commands inside it."""
    yield names
    for name, inner in getattr(command, "commands", {}).items():
        if not inner.hidden:
            yield from all_commands(inner, *names, name)


def test_no_help_imports_anything_heavy() -> None:
    commands = [list(names) for names in all_commands(typer.main.get_command(app))]
    assert {" ".join(names) for names in commands} == {"", *COMMANDS, "recipe init"}
    code = (
        "import sys; from haystack_distill.cli.app import app\n"
        f"for names in {commands}: app([*names, '--help'], standalone_mode=False)\n"
        "print('heavy:', sorted({'torch', 'transformers', 'datasets', 'numpy', 'haystack'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert "heavy: []" in done.stdout
    assert done.stdout.count("Usage: ") == len(commands)


@pytest.mark.parametrize("command", TRAINING_COMMANDS)
def test_defaults_are_those_of_the_python_interface(command: str) -> None:
    defaults = {p.name: p.default for p in typer.main.get_command(app).commands[command].params}
    for field in (*dataclasses.fields(TrainingSettings), *dataclasses.fields(WindowSettings)):
        assert defaults[field.name] == field.default, field.name
    for name in ("max_answer_length", "no_answer_threshold"):
        assert defaults[name] == inspect.signature(Reader).parameters[name].default, name


@pytest.mark.parametrize("command", ["evaluate", "ask"])
def test_defaults_are_those_of_the_reader(command: str) -> None:
    defaults = {p.name: p.default for p in typer.main.get_command(app).commands[command].params}
    parameters = inspect.signature(Reader).parameters | inspect.signature(Reader.load).parameters
    for name in ("max_answer_length", "no_answer_threshold", "batch_size", "precision", "device"):
        assert defaults[name] == parameters[name].default, name
    assert (defaults["backend"], defaults["num_threads"]) == ("torch", None)
    text = " ".join(run(command, "--help").stdout.replace("│", " ").split())
    assert "a batch holds 1024 tokens at most" in text  # what a budget of tokens does to --batch-size


@pytest.mark.parametrize("command", [*TRAINING_COMMANDS, "evaluate", "export", "prune"])
def test_data_to_measure_on_is_checked_before_anything_is_loaded(
    command: str, squad_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("haystack_distill.models.reader.load_reader_model", load)
    content = json.loads(squad_file.read_text())
    content["data"][0]["paragraphs"][0]["qas"][0] |= {"labelled": False, "answers": []}
    unlabelled = tmp_path / "unlabelled.json"
    unlabelled.write_text(json.dumps(content))
    readers = ["--teacher", tmp_path, "--student", tmp_path] if "distil" in command else ["--model", tmp_path]
    option = "--dev-data" if command in TRAINING_COMMANDS else "--data"
    more = ["--data", squad_file] if command in TRAINING_COMMANDS else []
    more += ["--corpus", squad_file] if command == "prune" else []
    more += ["--output-dir", tmp_path / "out"] if command != "evaluate" else []
    for data, message in ((unlabelled, 'question "q0-0" is unlabelled'), (tmp_path / "absent.json", "no such file")):
        assert message in refusal(command, *readers, *more, option, data)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seed", [-1, 2**32, 2**70])
@pytest.mark.parametrize("command", [*TRAINING_COMMANDS, "student", "demo"])
def test_a_seed_that_not_all_take(
    command: str, seed: int, teacher_dir: Path, squad_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = ["--output-dir", tmp_path / "out", "--seed", seed]
    given = {
        "train": ["--model", teacher_dir, "--data", squad_file],
        "student": ["--teacher", teacher_dir, "--num-hidden-layers", 1],
        "demo": [],
    }.get(command, ["--teacher", teacher_dir, "--student", teacher_dir, "--data", squad_file])
    assert "seed must be a whole number from 0 to 4294967295" in refusal(command, *given, *out)


def test_a_tilde_is_the_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In everything that takes a file or a directory: the shell expands no ~ behind an equals sign."""
    monkeypatch.setenv("HOME", str(tmp_path))
    names = set()
    waiting = [typer.main.get_command(app)]
    while waiting:
        command = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        for parameter in command.params:
            if not any(word in str(parameter.metavar) for word in ("FILE", "DIRECTORY")):
                continue
            names.add(parameter.name)
            several = parameter.multiple or parameter.nargs == -1
            for typed, meant in (("~/x", tmp_path / "x"), ("a/~b", "a/~b"), ("~nobody-here/x", "~nobody-here/x")):
                ctx = typer.Context(command, resilient_parsing=True)  # so that no --config is read
                value = parameter.process_value(ctx, [typed] if several else typed)
                assert str(value[0] if several else value) == str(meant), (command.name, parameter.name)
    assert names >= {"output_dir", "data", "dev_data", "model", "teacher", "student", "cache_dir", "config", "output"}
    assert names >= {"predictions", "corpus", "calibration_data", "context_file", "directory", "directories"}


def test_paths_in_the_home_directory(student_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run_json("student", "--teacher=~/student", "--layers=1", "--output-dir=~/smaller")
    assert run_json("info", "~/smaller")["directory"] == str(tmp_path / "smaller")
    assert run("recipe", "init", "--output=~/recipe.yaml").exit_code == 0
    assert (tmp_path / "recipe.yaml").exists()
    (tmp_path / "student.yaml").write_text("output_dir: '~/again'\nlayers: 1\n")
    run_json("student", "--teacher=~/student", "--config=~/student.yaml")
    assert (tmp_path / "again" / "model.safetensors").exists()
    assert not any((tmp_path / "elsewhere").iterdir())


def test_embedded_is_loaded_by_name(
    monkeypatch: pytest.MonkeyPatch, tiny_reader: Callable[..., Reader], tmp_path: Path
) -> None:
    import haystack_distill.models.embedded_teacher

    asked: list[dict] = []

    def fake(**settings: Any) -> Reader:
        asked.append(settings)
        return tiny_reader()

    monkeypatch.setattr(haystack_distill.models.embedded_teacher, "embedded_teacher", fake)
    run_json("student", "--teacher", "embedded", "--layers", "1", "--output-dir", tmp_path / "cut")
    base = ["--question", "Who?", "--context", "Ada.", "--device", "cpu"]
    run_json("ask", "--model", "embedded", *base, "--max-answer-length", "5")
    assert asked[1]["max_answer_length"] == 5


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, student_dir: Path) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Reader, "answer", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        run("ask", "--model", student_dir, "--question", "Who?", "--context", "Ada.", *WINDOWS)


def test_only_the_first_process_prints_the_result(teacher_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run("info", teacher_dir, "--json").stdout == ""


@pytest.mark.slow
def test_as_a_process(student_dir: Path, tmp_path: Path) -> None:
    def process(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "haystack_distill", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=tmp_path, check=False)

    question = ["--question", "Who wrote it?", "--context", "Ada Lovelace wrote it in 1843."]
    done = process("ask", "--model", student_dir, *question, *WINDOWS, "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["answers"]) == 1
    done = process("info", tmp_path / "absent")
    assert (done.returncode, done.stdout) == (2, "")
    assert "holds no config.json" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "--model", "BROKEN", "--data", "DATA"),
        ("ask", "--model", "BROKEN", "--question", "Who?", "--context", "Ada wrote it."),
        ("ask", "--model", "BROKEN", "--question", "Who?", "--context", "Ada wrote it.", "--backend", "onnx"),
        ("train", "--model", "BROKEN", "--data", "DATA", "--output-dir", "OUT"),
        ("student", "--teacher", "BROKEN", "--output-dir", "OUT"),
        ("distil", "--teacher", "BROKEN", "--student", "STUDENT", "--data", "DATA", "--output-dir", "OUT", *QUICK),
        ("distil", "--teacher", "STUDENT", "--student", "BROKEN", "--data", "DATA", "--output-dir", "OUT", *QUICK),
        (
            *("distil", "--teacher", "STUDENT", "--teacher", "BROKEN", "--student", "STUDENT", "--data", "DATA"),
            *("--output-dir", "OUT", *QUICK),
        ),
        ("export", "--model", "BROKEN", "--output-dir", "OUT"),
        ("prune", "--model", "BROKEN", "--corpus", "DATA", "--output-dir", "OUT"),
        ("suggest", "--teacher", "BROKEN", "--budget", "10 MB"),
        ("profile", "--model", "BROKEN"),
        ("info", "BROKEN"),
    ],
    ids=" ".join,
)
def test_every_command_names_a_broken_model(
    tiny_reader: Callable[..., Reader], student_dir: Path, squad_file: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    broken = tiny_reader().save(tmp_path / "broken")
    (broken / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    places = {"BROKEN": broken, "STUDENT": student_dir, "DATA": squad_file, "OUT": tmp_path / "out"}
    message = refusal(*(places.get(part, part) for part in command))
    assert "Git LFS pointer" in message
    assert "git lfs pull" in message
    assert not (tmp_path / "out").exists()
