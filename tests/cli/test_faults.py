"""Every command that writes something, on a disk that lets it write nothing, or only some of it."""

import contextlib
import errno
import io
import json
import os
import resource
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from augment.command import app as augment_app
from haystack_distill import Reader, students
from haystack_distill.cli.app import app
from haystack_distill.cli.output import print_result
from haystack_distill.utils.atomic import write_atomically
from haystack_distill.utils.cache import CACHE_VARIABLE
from haystack_distill.utils.console import never_lose_a_result
from tests.conftest import squad_content

# What the file system refuses depends on no Haystack.
pytestmark = pytest.mark.only_in("farm")

WINDOWS = ["--max-seq-len", "48", "--doc-stride", "16", "--max-query-length", "16"]
QUICK = [*WINDOWS, "--max-steps", "1", "--batch-size", "4", "--no-progress", "--device", "cpu", "--precision", "fp32"]
FILES = {"evaluate", "recipe init", "augment", "augment --statistics_only", "augment --merge"}  # what they write
FOLDERS = {
    *("train", "distil", "distil layers", "student", "student fresh", "prune", "export"),
    *("recipe", "report", "demo", "compare", "agree", "calibrate"),
}

VARIANTS = {"student fresh", "distil layers", "augment --statistics_only", "augment --merge"}


def run(*arguments: object, charset: str = "utf-8") -> Result:
    """The command line in this process; what it did not mean to raise is raised."""
    words = [str(argument) for argument in arguments]
    made = augment_app if words[0] == "augment" else app
    result = CliRunner(charset=charset, env={"COLUMNS": "300", "TERMINAL_WIDTH": "300", "NO_COLOR": "1"}).invoke(
        made, words[1:] if words[0] == "augment" else words
    )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def commands(
    tiny_reader: Callable[..., Reader], squad_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, object], list[object]]:
    """A command's arguments, by its name and where it shall write."""
    place = tmp_path / "given"
    teacher = tiny_reader(seed=1).save(place / "teacher")
    student = students.from_teacher(tiny_reader(seed=1), layers=2).save(place / "student")
    for name in ("one", "other"):
        (place / name).mkdir()
        report = {"format": 1, "title": "t", "figures": [], "data": {"questions": 1, "sha256": "0"}, "runs": {}}
        example = {"id": "q", "question": "Who?", "answers": ["Ada"], "excerpt": "Ada"}
        result = {"id": "q", "text": "Ada", "score": 0.5, "exact": 1.0, "f1": 1.0}
        measured = {"name": "teacher", "role": "teacher", "parameters": 1, "megabytes": 1.0, "milliseconds": 1.0}
        measured |= {"timed_questions": 1, "device": "cpu", "data": "0", "examples": [result]}
        measured["metrics"] = {"exact": 100.0, "f1": 100.0, "total": 1}
        report |= {"histories": {}, "examples": [example], "measurements": [measured]}
        (place / name / "report.json").write_text(json.dumps(report))
    articles = place / "articles.json"
    articles.write_text(json.dumps(squad_content(repeat=2)))
    monkeypatch.setattr("haystack_distill.cli.demo.train_students", demo_training)
    data = ["--data", squad_file]
    both = ["--teacher", teacher, "--student", student, *data, *QUICK]
    augment = ["augment", "--squad_path", squad_file, "--tagger", "textblob"]
    run(*augment, "--statistics_only", "--output_path", place / "statistics.json")
    shards = ["--multiplication_factor", "2", "--statistics", place / "statistics.json", "--shard", "1/1"]
    run(*augment, *shards, "--output_path", place / "shard.json")
    sizes = ["--hidden-size", "16", "--num-attention-heads", "2", "--intermediate-size", "24"]

    comparison = ["compare", "--teacher", teacher, "--layers", "2", *data, "--dev-data", squad_file]
    comparison += ["--methods", "labels", "--max-steps", "1", "--no-int8", *WINDOWS]

    def recipe(output: object) -> Path:
        quick = {"max_steps": 1, "batch_size": 4}
        content = {
            "teacher": str(teacher),
            "data": str(squad_file),
            "dev_data": str(squad_file),
            "output_dir": str(output),
            "device": "cpu",
            "precision": "fp32",
            "max_seq_len": 48,
            "doc_stride": 16,
            "max_query_length": 16,
            "student": {"layers": 2},
            "stages": [
                {"name": "layers", "method": "intermediate_layers", **quick},
                {"name": "answers", "method": "prediction_layer", **quick},
            ],
        }
        path = place / "recipe.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    def arguments(name: str, output: object) -> list[object]:
        return {
            "train": lambda: ["train", "--model", student, *data, *QUICK, "--output-dir", output],
            "distil layers": lambda: ["distil", "--method", "intermediate_layers", *both, "--output-dir", output],
            "distil": lambda: ["distil", *both, "--output-dir", output],
            "student": lambda: ["student", "--teacher", teacher, "--output-dir", output],
            "student fresh": lambda: ["student", "--teacher", teacher, *sizes, "--output-dir", output],
            "prune": lambda: ["prune", "--model", student, "--corpus", squad_file, "--output-dir", output, *WINDOWS],
            "export": lambda: ["export", "--model", student, "--output-dir", output, *WINDOWS],
            "agree": lambda: [
                "agree",
                "--model",
                student,
                "--against",
                teacher,
                *data,
                "--output-dir",
                output,
                *WINDOWS,
            ],
            "calibrate": lambda: [
                "calibrate",
                "--model",
                student,
                "--dev-data",
                articles,
                "--output-dir",
                output,
                *WINDOWS,
            ],
            "evaluate": lambda: ["evaluate", "--model", student, *data, "--predictions", output, *WINDOWS],
            "recipe": lambda: ["recipe", "--no-progress", "--config", recipe(output)],
            "compare": lambda: [*comparison, "--output-dir", output],
            "recipe init": lambda: ["recipe", "init", "--output", output],
            "report": lambda: ["report", place / "one", place / "other", "--output", output],
            "demo": lambda: ["demo", "--output-dir", output],
            "augment": lambda: [*augment, "--multiplication_factor", "2", "--output_path", output],
            "augment --statistics_only": lambda: [*augment, "--statistics_only", "--output_path", output],
            "augment --merge": lambda: ["augment", "--merge", place / "shard.json", "--output_path", output],
        }[name]()

    return arguments


def demo_training(*_: Any, **__: Any) -> None:
    raise AssertionError("the demo trains before it knows whether it may write")


def options_of(name: str) -> list[Any]:
    command = typer.main.get_command(augment_app if name.startswith("augment") else app)
    for word in name.split():
        command = getattr(command, "commands", {}).get(word, command)
    return command.params


def refusal(result: Result) -> str:
    """The one sentence in which a command ends."""
    assert result.exit_code == 2, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.count("Error: ") == 1, result.stderr
    return result.stderr.partition("Error: ")[2]


@contextlib.contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """As on a disk that is full after so many bytes, whoever writes: Python, Rust or C++."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# --- known before the work -------------------------------------------------------------------------------------------


def test_every_command_with_an_output_is_among_these() -> None:
    def writing(command: Any, name: str) -> Iterator[str]:
        if any(
            parameter.name in ("output_dir", "output", "output_path", "predictions") for parameter in command.params
        ):
            yield name
        for inner, found in getattr(command, "commands", {}).items():
            yield from writing(found, f"{name} {inner}".strip())

    found = set(writing(typer.main.get_command(app), ""))
    assert found | {"recipe", "augment"} == {name for name in FILES | FOLDERS if name not in VARIANTS}


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be loaded, trained, tagged or drawn before it is known whether there is a place for the result."""

    def work(*_: Any, **__: Any) -> None:
        raise AssertionError("the work began")

    for name in (
        "haystack_distill.models.reader.load_reader_model",
        "augment.job.Job.begin",
        "haystack_distill.reporting.report._write",
    ):
        monkeypatch.setattr(name, work)


@pytest.mark.parametrize("fault", ["below a file", "the wrong kind", "nobody may write there", "a name too long"])
@pytest.mark.parametrize("name", sorted(FILES | FOLDERS))
def test_a_place_that_cannot_be_written_is_known_before_the_work(
    name: str,
    fault: str,
    commands: Callable[[str, object], list[object]],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "file").write_text("mine")
    (work / "folder").mkdir()
    (work / "folder" / "file").write_text("mine")
    output = {
        "below a file": work / "file" / "output",
        "the wrong kind": work / ("folder" if name in FILES else "file"),
        "nobody may write there": Path("/proc/output/output"),  # not even root
        "a name too long": work / ("x" * 300),
    }[fault]
    if name in FILES and name.startswith("augment") and fault == "nobody may write there":
        output = Path("/proc/output")
    arguments = commands(name, output)
    request.getfixturevalue("no_work")
    before = everything(work)
    said = refusal(run(*arguments))
    assert str(output)[:40] in said.replace("\n", "")
    assert "choose another" in said or "exists" in said
    assert everything(work) == before
    assert (work / "file").read_text() == "mine"


@pytest.mark.parametrize("name", sorted(FILES | FOLDERS))
def test_a_disk_that_is_full_from_the_start(
    name: str, commands: Callable[[str, object], list[object]], tmp_path: Path
) -> None:
    arguments = commands(name, tmp_path / "output")
    before = everything(tmp_path)
    with no_file_longer_than(1000):
        said = refusal(run(*arguments))
    assert "cannot write" in said
    left = everything(tmp_path) - before
    assert not [name for name in left if name.endswith((".tmp", ".safetensors", "output"))], left


# --- known in the work -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted((FILES | FOLDERS) - {"demo", "compare"}))
def test_a_disk_that_fills_up(name: str, commands: Callable[[str, object], list[object]], tmp_path: Path) -> None:
    ran = run(*commands(name, tmp_path / "whole"))
    assert ran.exit_code == 0, ran.stderr
    whole = tmp_path / "whole"
    largest = max(path.stat().st_size for path in ([whole] if name in FILES else whole.rglob("*")))
    output = tmp_path / "output"
    arguments = commands(name, output)
    before = everything(tmp_path)
    for size in sorted({min(5000, largest - 1), largest * 9 // 10}):
        with no_file_longer_than(size):
            said = refusal(run(*arguments))
        assert "cannot write" in said
        left = everything(tmp_path) - before
        assert not [path for path in left if path.endswith((".tmp", "report.html"))], left
        for model in set(output.rglob("model.safetensors")) - set(output.rglob("checkpoints/*/*")):
            load_file(model)
        if name in FILES:
            assert not output.exists()
        if name in ("train", "distil", "distil layers") and "--resume" not in arguments:
            arguments = [*arguments, "--resume"]
    done = run(*arguments)
    assert done.exit_code == 0, done.stderr  # what failed stands in nobody's way
    assert not [path for path in everything(tmp_path) - before if path.endswith(".tmp")]


@pytest.mark.parametrize("name", ["export", "prune", "recipe --dry-run", "suggest"])
def test_no_place_for_temporary_files(
    name: str, commands: Callable[[str, object], list[object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "recipe --dry-run":
        arguments = [*commands("recipe", tmp_path / "output"), "--dry-run"]
    elif name == "suggest":
        arguments = ["suggest", "--teacher", tmp_path / "given" / "student", "--budget", "1 MB", *WINDOWS]
    else:
        arguments = commands(name, tmp_path / "output")

    def nowhere() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/var/tmp']")

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_get_default_tempdir", nowhere)
    said = refusal(run(*arguments))
    assert "cannot create a temporary directory" in said
    assert "TMPDIR" in said
    assert not (tmp_path / "output").exists()


# --- links, devices, pipes -------------------------------------------------------------------------------------------


def reading(pipe: Path) -> tuple[threading.Thread, list[bytes]]:
    """Somebody who reads a named pipe to its end."""
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(pipe.read_bytes()), daemon=True)
    thread.start()
    return thread, found


@pytest.mark.parametrize("name", sorted(FILES))
def test_an_output_that_is_a_link_stays_one(
    name: str, commands: Callable[[str, object], list[object]], tmp_path: Path
) -> None:
    assert run(*commands(name, tmp_path / "plain")).exit_code == 0
    for folder, link in (("there", "old"), ("there", "new"), ("elsewhere", "dangling")):
        target = tmp_path / folder / f"{link}.json"
        target.parent.mkdir(exist_ok=True)
        if link == "old":
            target.write_text("before")
        (tmp_path / link).symlink_to(target)
        more = ["--overwrite"] if link == "old" and name != "evaluate" else []
        ran = run(*commands(name, tmp_path / link), *more)
        assert ran.exit_code == 0, ran.stderr
        assert (tmp_path / link).is_symlink()
        assert target.read_bytes() == (tmp_path / "plain").read_bytes()
    assert everything(tmp_path / "there") == {"old.json", "new.json"}


@pytest.mark.parametrize("name", sorted(FILES))
def test_an_output_that_is_a_pipe_is_written_into(
    name: str, commands: Callable[[str, object], list[object]], tmp_path: Path
) -> None:
    assert run(*commands(name, tmp_path / "plain")).exit_code == 0
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # as a device, but that tests that go wrong replace nothing that others need
    thread, found = reading(pipe)
    ran = run(*commands(name, pipe))
    assert ran.exit_code == 0, ran.stderr
    thread.join(timeout=20)
    assert found == [(tmp_path / "plain").read_bytes()]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert not list(tmp_path.glob(".*"))


def test_files_that_are_open_already(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w+") as file:
        write_atomically(Path(f"/dev/fd/{file.fileno()}"), lambda aside: aside.write_text("whole"))
        assert file.read() == "whole"
    assert everything(tmp_path) == {"file"}


# --- stdout ----------------------------------------------------------------------------------------------------------


def process(*arguments: object, **more: Any) -> subprocess.CompletedProcess[bytes]:
    root = str(Path(__file__).resolve().parents[2])
    own = {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "COLUMNS": "200"} | more.pop("env", {})
    environment = {name: value for name, value in (os.environ | own).items() if value is not None}
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, env=environment, check=False, stderr=subprocess.PIPE, **more)


def reader_in(directory: Path) -> str:
    return str(directory / "given" / "student")


CONTEXT = "Zoë wrote it in the café, says 東京."
QUESTION = ["--question", "Who wrote it?", "--context", CONTEXT]


@pytest.mark.parametrize("charset", ["ascii", "latin-1"])
def test_a_stdout_that_is_not_utf8_loses_nothing(
    charset: str, commands: Callable[[str, object], list[object]], tmp_path: Path
) -> None:
    ask = ["ask", "--model", reader_in(tmp_path), *QUESTION, *WINDOWS, "--top-k", 20]
    expected = json.loads(run(*ask, "--json").stdout)
    assert "Zoë" in str(expected)
    told = run(*ask, "--json", charset=charset)
    assert told.exit_code == 0
    assert json.loads(told.stdout_bytes.decode("ascii")) == expected
    table = run(*ask, charset=charset)
    assert table.exit_code == 0
    assert {"ascii": b"Zo\\xeb wrote", "latin-1": "Zoë wrote".encode("latin-1")}[charset] in table.stdout_bytes


@pytest.mark.parametrize("charset", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize(
    "arguments", [["--help"], ["distil", "--help"], ["info", "\udce9\N{CJK UNIFIED IDEOGRAPH-6771}"]]
)
def test_every_character_is_taken(charset: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=charset) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    with pytest.raises(SystemExit) as ended:
        app(arguments)
    assert ended.value.code == (2 if arguments[0] == "info" else 0)


def test_answers_and_tables_that_stdout_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"café": "東京", "path": Path("\udce9")}
    for charset in ("ascii", "latin-1", "utf-8"):
        for as_json in (True, False):
            stream = io.TextIOWrapper(io.BytesIO(), encoding=charset)
            monkeypatch.setattr(sys, "stdout", stream)
            never_lose_a_result()
            print_result(as_json, told, "東京")
            stream.flush()
            text = stream.buffer.getvalue().decode(charset)  # type: ignore[attr-defined]
            assert (not as_json) or json.loads(text) == {"café": "東京", "path": "\udce9"}


@pytest.mark.parametrize("arguments", [["info"], ["info", "--json"]])
def test_a_stdout_that_is_full_is_no_success(
    arguments: list[str], commands: Callable[[str, object], list[object]], tmp_path: Path
) -> None:
    (tmp_path / "full").write_bytes(bytes(100_000))
    with open(tmp_path / "full", "ab") as full:

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

        ran = process("haystack_distill", *arguments, reader_in(tmp_path), stdout=full, preexec_fn=limit)
    assert ran.returncode == 2, ran.stderr
    assert ran.stderr.decode().startswith("Error: cannot write the result to stdout (File too large)")
    assert len(ran.stderr.decode().splitlines()) == 1


# --- nobody's home ---------------------------------------------------------------------------------------------------


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under a number that the system has no name for."""

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", CACHE_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)


def test_without_a_home_the_cache_says_where_it_could_be(
    nobody: None, commands: Callable[[str, object], list[object]], tmp_path: Path
) -> None:
    for name in ("evaluate", "train", "recipe"):
        said = refusal(run(*commands(name, tmp_path / "output")))
        assert "no home directory for the cache" in said
        assert CACHE_VARIABLE in said
        assert not (tmp_path / "output").exists()


# A comparison starts processes.
COMPARE = pytest.param("compare", marks=pytest.mark.only_in("haystack"))


@pytest.mark.parametrize("name", [*sorted((FILES | FOLDERS) - {"demo", "recipe", "compare"}), COMPARE])
def test_without_a_home_all_else_works(
    name: str, nobody: None, commands: Callable[[str, object], list[object]], tmp_path: Path
) -> None:
    arguments = commands(name, tmp_path / "output")
    if any(option.name == "cache_dir" for option in options_of(name)) and not name.startswith(
        "student"
    ):  # without data
        arguments = [*arguments, "--cache-dir", tmp_path / "cache"]
    ran = run(*arguments)
    assert ran.exit_code == 0, ran.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--model", "~/reader", "--data", "~/data.json", "--output-dir", "~/out"],
        ["evaluate", "--model", "~/reader", "--data", "~/data.json", "--predictions", "~/out.json"],
        ["ask", "--model", "~/reader", "--question", "q", "--context-file", "~/file"],
        ["train", "--config", "~/train.yaml"],
        ["recipe", "--config", "~/recipe.yaml"],
        ["augment", "--squad_path", "~/data.json", "--output_path", "~/out.json"],
        ["augment", "--squad_path", "SQUAD", "--output_path", "~/out.json", "--statistics", "~/statistics.json"],
    ],
)
def test_a_home_that_is_not_there(arguments: list[str], nobody: None, squad_file: Path, tmp_path: Path) -> None:
    with contextlib.chdir(tmp_path) if hasattr(contextlib, "chdir") else contextlib.nullcontext():
        ran = run(*[str(squad_file) if word == "SQUAD" else word for word in arguments])
    assert ran.exit_code == 2
    assert "home directory: set HOME" in ran.stderr
    assert "Traceback" not in ran.stderr
