import dataclasses
import inspect
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import typer
import yaml
from typer.testing import CliRunner, Result

from haystack_distill import DistilError, Reader, ReaderTrainer, TrainingSettings, WindowSettings, students
from haystack_distill.cli.app import app
from haystack_distill.cli.inputs import load_teacher
from haystack_distill.data.squad.load import load_examples
from haystack_distill.training.checkpoints import directory_lock
from haystack_distill.utils.transformers_compat import save_model

COMMANDS = [
    "train",
    "student",
    "distil-intermediate",
    "distil",
    "evaluate",
    "ask",
    "info",
    "demo",
    "recipe",
    "report",
    "push",
    "export",
    "prune",
    "suggest",
]
TRAINING_COMMANDS = ["train", "distil-intermediate", "distil"]
WINDOWS = ["--max-seq-len", "48", "--doc-stride", "16", "--max-query-length", "16"]
QUICK = [
    *WINDOWS,
    "--n-epochs",
    "1",
    "--no-progress",
    "--device",
    "cpu",
    "--precision",
    "fp32",
    "--checkpoint-every",
    "none",
]


def run(*arguments: object, **more: Any) -> Result:
    """The command line in this process; what it did not mean to raise is raised."""
    result = CliRunner(env={"COLUMNS": "200", "TERMINAL_WIDTH": "200", "NO_COLOR": "1"}).invoke(
        app, [str(argument) for argument in arguments], **more
    )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def run_json(*arguments: object) -> dict:
    """What a command tells scripts: one JSON object, and nothing else on stdout."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def refusal(*arguments: object, **more: Any) -> str:
    """What a command says on stderr, on one line, when it refuses."""
    result = run(*arguments, **more)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.replace("│", " ").split())


@pytest.fixture(autouse=True)
def logger_as_it_was() -> Any:
    logger = logging.getLogger("haystack_distill")
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers, logger.level = handlers, level


@pytest.fixture
def teacher_dir(tiny_reader: Callable[..., Reader], tmp_path: Path) -> Path:
    return tiny_reader(seed=1).save(tmp_path / "teacher")


@pytest.fixture
def student_dir(tiny_reader: Callable[..., Reader], tmp_path: Path) -> Path:
    return students.from_teacher(tiny_reader(seed=1), layers=2).save(tmp_path / "student")


# --- help ------------------------------------------------------------------------------------------------------------


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


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from haystack_distill.cli.app import app; app(['distil', '--help'], standalone_mode=False); "
        "print('heavy:', sorted({'torch', 'transformers', 'datasets', 'numpy', 'haystack'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert "heavy: []" in done.stdout


def environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    return os.environ | {"PYTHONPATH": root, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@pytest.mark.parametrize("command", TRAINING_COMMANDS)
def test_defaults_are_those_of_the_python_interface(command: str) -> None:
    defaults = {p.name: p.default for p in typer.main.get_command(app).commands[command].params}
    for field in dataclasses.fields(TrainingSettings):
        assert defaults[field.name] == field.default, field.name
    for field in dataclasses.fields(WindowSettings):
        assert defaults[field.name] == field.default, field.name
    for name in ("max_answer_length", "no_answer_threshold"):
        assert defaults[name] == inspect.signature(Reader).parameters[name].default, name
    method = {
        "train": ReaderTrainer.train,
        "distil-intermediate": ReaderTrainer.distil_intermediate_layers_from,
        "distil": ReaderTrainer.distil_prediction_layer_from,
    }[command]
    for name, parameter in inspect.signature(method).parameters.items():
        if parameter.default is not parameter.empty:
            assert defaults[name] == parameter.default, name


@pytest.mark.parametrize("command", ["evaluate", "ask"])
def test_defaults_are_those_of_the_reader(command: str) -> None:
    defaults = {p.name: p.default for p in typer.main.get_command(app).commands[command].params}
    for name in ("max_answer_length", "no_answer_threshold", "batch_size", "precision", "device"):
        assert defaults[name] == inspect.signature(Reader).parameters[name].default, name


# --- student ---------------------------------------------------------------------------------------------------------


def test_student_cut(teacher_dir: Path, tmp_path: Path) -> None:
    told = run_json("student", "--teacher", teacher_dir, "--which", "1,3", "--output-dir", tmp_path / "cut")
    assert told["arguments"] == {"layers": 2, "which": [1, 3]}
    made = Reader.load(tmp_path / "cut", window_settings=WindowSettings(48, 16, 16))
    assert made.model.config.num_hidden_layers == 2
    assert made.n_parameters == told["parameters"] < told["teacher_parameters"]
    teacher = Reader.load(teacher_dir, window_settings=WindowSettings(48, 16, 16))
    for own, theirs in ((0, 0), (1, 2)):
        expected = teacher.model.bert.encoder.layer[theirs].state_dict()
        for name, weight in made.model.bert.encoder.layer[own].state_dict().items():
            assert torch.equal(weight, expected[name])
    record = json.loads((tmp_path / "cut" / "haystack_distill.json").read_text())
    assert record["method"] == "student"
    assert record["arguments"] == told["arguments"]
    assert record["versions"]["torch"] == torch.__version__
    assert record["parameters"] == told["parameters"]


def test_student_keeps_three_layers_unless_told(teacher_dir: Path, tmp_path: Path) -> None:
    told = run_json("student", "--teacher", teacher_dir, "--output-dir", tmp_path / "cut")
    assert told["arguments"] == {"layers": 3, "which": "uniform"}


def test_student_fresh(teacher_dir: Path, tmp_path: Path) -> None:
    sizes = [
        "--hidden-size",
        "16",
        "--num-attention-heads",
        "4",
        "--intermediate-size",
        "24",
        "--num-hidden-layers",
        "1",
    ]
    arguments = ["student", "--teacher", teacher_dir, *sizes, "--shape", "hidden_act=relu"]
    told = run_json(*arguments, "--shape", "attention_probs_dropout_prob=0.25", "--output-dir", tmp_path / "a")
    config = Reader.load(tmp_path / "a", window_settings=WindowSettings(48, 16, 16)).model.config
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (16, 4, 24)
    assert (config.num_hidden_layers, config.hidden_act, config.attention_probs_dropout_prob) == (1, "relu", 0.25)
    assert told["arguments"]["seed"] == 42
    run_json(*arguments, "--shape", "attention_probs_dropout_prob=0.25", "--output-dir", tmp_path / "b")
    run_json(*arguments, "--seed", "7", "--output-dir", tmp_path / "c")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] != weights[2]


def test_student_refusals(teacher_dir: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "note.txt").write_text("mine")
    base = ["student", "--teacher", teacher_dir]
    assert "is not empty" in refusal(*base, "--output-dir", full)
    assert list(full.iterdir()) == [full / "note.txt"]
    assert run(*base, "--output-dir", full, "--overwrite").exit_code == 0
    assert (full / "note.txt").read_text() == "mine"
    assert (full / "model.safetensors").exists()
    assert "is the teacher" in refusal(*base, "--output-dir", teacher_dir, "--overwrite")
    assert "is a file" in refusal(*base, "--output-dir", full / "note.txt")
    out = ["--output-dir", tmp_path / "out"]
    assert "--num-hidden-layers" in refusal(*base, *out, "--layers", "2", "--hidden-size", "16")
    assert "--seed is for" in refusal(*base, *out, "--seed", "3")
    assert "NAME=VALUE" in refusal(*base, *out, "--shape", "hidden_act")
    assert "has no 'hidden_sise'" in refusal(*base, *out, "--shape", "hidden_sise=3")
    assert "1 to 4 layers, not 9" in refusal(*base, *out, "--layers", "9")
    assert "uniform, first, last or layers like 1,3,6" in refusal(*base, *out, "--which", "middle")
    assert not (tmp_path / "out").exists()


# --- training --------------------------------------------------------------------------------------------------------


def test_train(student_dir: Path, squad_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    base = ["train", "--model", student_dir, "--data", squad_file, "--dev-data", squad_file, "--output-dir", out]
    told = run_json(*base, *QUICK, "--learning-rate", "1e-3", "--batch-size", "4", "--dropout", "none", "--seed", "5")
    assert told["command"] == "train"
    assert told["steps"] >= 2
    assert told["metrics"]["total"] == 8
    record = json.loads((out / "haystack_distill.json").read_text())
    wanted = {"learning_rate": 1e-3, "batch_size": 4, "dropout": None, "seed": 5, "n_epochs": 1}
    assert {name: record["settings"][name] for name in wanted} == wanted
    assert record["windows"] == {"max_seq_len": 48, "doc_stride": 16, "max_query_length": 16}
    assert record["metrics"] == told["metrics"]
    assert {"torch", "transformers"} <= set(record["versions"])
    # The same as in Python.
    again = Reader.load(student_dir, window_settings=WindowSettings(48, 16, 16), precision="fp32", device="cpu")
    settings = TrainingSettings(
        n_epochs=1, learning_rate=1e-3, batch_size=4, dropout=None, seed=5, progress=False, precision="fp32"
    )
    ReaderTrainer(again, None, settings).train(str(squad_file))
    trained = Reader.load(out, window_settings=WindowSettings(48, 16, 16)).model.state_dict()
    assert all(torch.equal(weight, trained[name]) for name, weight in again.model.state_dict().items())


def test_every_setting_reaches_the_trainer(
    student_dir: Path, squad_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlike_defaults: dict[str, Any] = {
        "n_epochs": 3,
        "max_steps": 9,
        "learning_rate": 1e-4,
        "batch_size": 7,
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 0.5,
        "warmup_proportion": 0.25,
        "weight_decay": 0.0,
        "seed": 3,
        "dropout": None,
        "precision": "fp32",
        "evaluate_every": 5,
        "keep_best": True,
        "early_stopping_patience": 4,
        "checkpoint_every": 5,
        "keep_checkpoints": 3,
        "resume": True,
        "overwrite": True,
        "log_every": 2,
        "tensorboard": True,
        "progress": False,
    }
    assert list(unlike_defaults) == TrainingSettings.names()
    assert all(getattr(TrainingSettings(), name) != value for name, value in unlike_defaults.items())
    seen: list[tuple] = []

    def spy(self: ReaderTrainer, data: Any, dev_data: Any = None) -> None:
        seen.append((self, data, dev_data))
        raise DistilError("far enough")

    monkeypatch.setattr(ReaderTrainer, "train", spy)
    arguments: list[object] = []
    for name, value in unlike_defaults.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(flag if value else "--no-" + flag[2:])
        else:
            arguments += [flag, "none" if value is None else value]
    reading = [*WINDOWS, "--max-answer-length", "9", "--no-answer-threshold", "1.5", "--device", "cpu"]
    more = tmp_path / "more.json"
    more.write_text(squad_file.read_text().replace('"q0-', '"q1-'))
    base = ["train", "--model", student_dir, "--data", squad_file, "--data", more, "--dev-data", squad_file]
    cache = tmp_path / "cache"
    config = tmp_path / "run.yaml"
    config.write_text("\n".join(f"{name}: {json.dumps(value)}" for name, value in unlike_defaults.items()))
    for given in (arguments, ["--config", config]):
        text = refusal(*base, "--output-dir", tmp_path / "out", *given, *reading, "--cache-dir", cache)
        assert "far enough" in text
        trainer, data, dev_data = seen.pop()
        assert trainer.settings == TrainingSettings(**unlike_defaults)
        assert trainer.student.window_settings == WindowSettings(48, 16, 16)
        assert (trainer.student.max_answer_length, trainer.student.no_answer_threshold) == (9, 1.5)
        assert trainer.cache_dir == cache
        assert any(cache.rglob("*.arrow"))
        assert len(data) == 16
        assert len(dev_data) == 8


def test_distil_with_other_windows_for_a_short_teacher(
    tiny_reader: Callable[..., Reader], squad_file: Path, tmp_path: Path
) -> None:
    short = WindowSettings(32, 8, 16)
    teacher = tiny_reader(seed=1, max_position_embeddings=32, window_settings=short).save(tmp_path / "short")
    student = tiny_reader(seed=2, num_hidden_layers=1).save(tmp_path / "student")
    out = tmp_path / "out"
    base = ["--teacher", teacher, "--student", student, "--data", squad_file, "--output-dir", out]
    weights = ["--temperature", "2", "--distillation-loss-weight", "0.75"]
    told = run_json("distil", *base, *QUICK, *weights)
    assert told["metrics"] == {}
    record = json.loads((out / "haystack_distill.json").read_text())
    assert record["method"] == "prediction_layer"
    assert record["arguments"] == {"temperature": 2.0, "distillation_loss_weight": 0.75, "distillation_loss": "kl_div"}
    assert record["windows"]["max_seq_len"] == 48
    assert "more than the 32 positions" in refusal("distil-intermediate", *base, "--overwrite", *QUICK)


def test_distil_intermediate(teacher_dir: Path, student_dir: Path, squad_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    base = ["--teacher", teacher_dir, "--student", student_dir, "--data", squad_file, "--output-dir", out]
    weights = ["--hidden-loss-weight", "2", "--embedding-loss-weight", "0", "--attention-loss-weight", "0.5"]
    told = run_json("distil-intermediate", *base, *QUICK, "--layer-mapping", "none,4", *weights)
    assert told["steps"] >= 1
    record = json.loads((out / "haystack_distill.json").read_text())
    assert record["arguments"] == {
        "layer_mapping": [None, 4],
        "embedding_loss_weight": 0.0,
        "hidden_loss_weight": 2.0,
        "attention_loss_weight": 0.5,
    }
    assert "is the teacher" in refusal("distil-intermediate", *base, "--output-dir", teacher_dir)


def test_training_refusals(student_dir: Path, squad_file: Path, tmp_path: Path) -> None:
    base = ["train", "--model", student_dir, "--data", squad_file, "--output-dir", tmp_path / "out", *QUICK]
    assert "n_epochs must be a whole number" in refusal(*base, "--n-epochs", "0")
    assert "'often' is not INTEGER or epoch or none" in refusal(*base, "--evaluate-every", "often")
    assert "'fp64' is not one of auto, fp32" in refusal(*base, "--precision", "fp64")
    assert "--evaluate-every is about measuring" in refusal(*base, "--evaluate-every", "5")
    assert "--no-answer-threshold is about measuring" in refusal(*base, "--no-answer-threshold", "1")
    assert "keep_best and early_stopping_patience need dev_data" in refusal(
        *base, "--keep-best", "--checkpoint-every", "epoch"
    )
    assert "no such file" in refusal(*base, "--data", tmp_path / "absent.json")
    assert "device 'gpu' cannot be used here" in refusal(*base, "--device", "gpu")
    assert "cannot load a reader" in refusal(*base, "--model", tmp_path / "absent")
    assert "--n-epochs" in refusal(*base, "--n-epoch", "3")
    assert "Missing option '--data'" in refusal("train", "--model", student_dir, "--output-dir", tmp_path / "out")


@pytest.mark.parametrize("command", [*TRAINING_COMMANDS, "evaluate", "export", "prune"])
def test_data_to_measure_on_is_checked_before_anything_is_loaded(
    command: str, squad_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("haystack_distill.models.reader.load_with_tokenizer", load)
    content = json.loads(squad_file.read_text())
    content["data"][0]["paragraphs"][0]["qas"][0] |= {"labelled": False, "answers": []}
    unlabelled = tmp_path / "unlabelled.json"
    unlabelled.write_text(json.dumps(content))
    readers = ["--teacher", tmp_path, "--student", tmp_path] if "distil" in command else ["--model", tmp_path]
    option = "--dev-data" if command in TRAINING_COMMANDS else "--data"
    more = ["--data", squad_file] if command in TRAINING_COMMANDS else []
    more += ["--corpus", squad_file] if command == "prune" else []
    more += ["--output-dir", tmp_path / "out"] if command != "evaluate" else []
    for data, said in ((unlabelled, 'question "q0-0" is unlabelled'), (tmp_path / "absent.json", "no such file")):
        assert said in refusal(command, *readers, *more, option, data)
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


def test_on_bad_example(student_dir: Path, squad_file: Path, tmp_path: Path) -> None:
    content = json.loads(squad_file.read_text())
    content["data"][0]["paragraphs"][0]["qas"][0]["question"] = 7
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(content))
    base = ["evaluate", "--model", student_dir, "--data", bad, *WINDOWS]
    assert "q0-0" in refusal(*base)
    assert run_json(*base, "--on-bad-example", "skip")["metrics"]["total"] == 7
    base = ["train", "--model", student_dir, "--data", bad, "--output-dir", tmp_path / "out", *QUICK]
    assert "q0-0" in refusal(*base)
    run_json(*base, "--on-bad-example", "skip")
    assert json.loads((tmp_path / "out" / "haystack_distill.json").read_text())["data"]["examples"] == 7


# --- configuration files ---------------------------------------------------------------------------------------------


def test_config_is_a_whole_run_and_the_command_line_wins(student_dir: Path, squad_file: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model: {student_dir}\ndata: [{squad_file}]\noutput_dir: {tmp_path / 'out'}\n"
        "dev_data: null\nmax_seq_len: 48\ndoc_stride: 16\nmax_query_length: 16\n"
        "n_epochs: 1\nlearning_rate: 1e-3\ndropout: null\nevaluate_every: 3\ncheckpoint_every: null\n"
        "progress: no\nprecision: fp32\njson: true\n"
    )
    text = refusal("train", "--config", config)
    assert "--evaluate-every is about measuring" in text
    result = run("train", "--config", config, "--seed", "9", "--learning-rate", "2e-3", "--evaluate-every", "none")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["output_dir"] == str(tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "haystack_distill.json").read_text())["settings"]
    assert (settings["seed"], settings["learning_rate"], settings["dropout"]) == (9, 2e-3, None)


def test_config_mistakes(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"

    def mistake(text: str, *arguments: object) -> str:
        config.write_text(text)
        return refusal("distil", "--config", config, *arguments)

    assert f"{config}: unknown key 'distilation_loss_weight'; did you mean 'distillation_loss_weight'?" in mistake(
        "distilation_loss_weight: 0.5"
    )
    assert f"{config}: unknown key 'model'" in mistake("model: x")
    for wrong in ("n_epochs: 2.5", "n_epochs: true", "n_epochs: many", "keep_best: perhaps", "temperature: hot"):
        assert f"{config}: {wrong.partition(':')[0]}: " in mistake(wrong), wrong
    assert f"{config}: distillation_loss: 'kl' is not one of kl_div, mse" in mistake("distillation_loss: kl")
    assert f"{config}: n_epochs: the value is missing" in mistake("n_epochs:")
    assert "Missing option '--teacher'" in mistake("n_epochs: 2")
    assert "absent.yaml: cannot be read" in refusal("distil", "--config", tmp_path / "absent.yaml")


def test_config_lists_of_layers(teacher_dir: Path, tmp_path: Path) -> None:
    config = tmp_path / "student.yaml"
    config.write_text(f"teacher: {teacher_dir}\nwhich: [2, 4]\noutput_dir: {tmp_path / 'out'}\n")
    assert run_json("student", "--config", config)["arguments"] == {"layers": 2, "which": [2, 4]}


# --- evaluate, ask, info, demo ---------------------------------------------------------------------------------------


def test_evaluate(student_dir: Path, squad_file: Path, tmp_path: Path) -> None:
    predictions = tmp_path / "predictions.json"
    base = ["evaluate", "--model", student_dir, "--data", squad_file, *WINDOWS]
    told = run_json(*base, "--predictions", predictions)
    reader = Reader.load(student_dir, window_settings=WindowSettings(48, 16, 16))
    assert told["metrics"] == pytest.approx(reader.evaluate(str(squad_file)))
    assert len(json.loads(predictions.read_text())) == 8
    table = run(*base).stdout
    assert "metrics f1" in table
    always_silent = run_json(*base, "--no-answer-threshold", "-1e9")["metrics"]
    assert (always_silent["NoAns_f1"], always_silent["HasAns_f1"]) == (100, 0)


def test_bytes_that_are_no_text_can_be_asked(student_dir: Path) -> None:
    # What Python makes of an argument in another encoding.
    question, context = "Who wrote it in K\udcf6ln?", "Ada \udcf6 Lovelace wrote the first program in 1843."
    base = ["ask", "--model", student_dir, "--question", question, "--context", context, *WINDOWS]
    told = run_json(*base)
    assert told["question"] == "Who wrote it in K\ufffdln?"
    assert told["answers"]
    result = run(*base)
    assert result.exit_code == 0
    assert "K\ufffdln" in result.stdout


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_tables_are_data_too(student_dir: Path, squad_file: Path, tmp_path: Path, ending: str) -> None:
    table = tmp_path / f"data.{ending}"
    rows = load_examples(squad_file).remove_columns("labelled")
    {"csv": rows.to_csv, "jsonl": rows.to_json, "parquet": rows.to_parquet}[ending](table)
    expected = run_json("evaluate", "--model", student_dir, "--data", squad_file, *WINDOWS)
    assert run_json("evaluate", "--model", student_dir, "--data", table, *WINDOWS)["metrics"] == expected["metrics"]


def test_on_bad_example_skips_what_annotation_tools_leave(student_dir: Path, squad_file: Path, tmp_path: Path) -> None:
    content = json.loads(squad_file.read_text())
    expected = run_json("evaluate", "--model", student_dir, "--data", squad_file, *WINDOWS)["metrics"]
    content["data"] += [{"title": ["no title"], "paragraphs": content["data"][0]["paragraphs"]}, "no article"]
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(content))
    assert "the title must be a string, not a list" in refusal("evaluate", "--model", student_dir, "--data", path)
    skipping = run_json("evaluate", "--model", student_dir, "--data", path, "--on-bad-example", "skip", *WINDOWS)
    assert skipping["metrics"] == expected


def test_ask(student_dir: Path, tmp_path: Path) -> None:
    context = "Ada Lovelace wrote the first program in 1843, long before there was a machine to run it on."
    file = tmp_path / "context.txt"
    file.write_text(context, encoding="utf-8")
    base = ["ask", "--model", student_dir, "--question", "Who wrote it?", "--top-k", "3", *WINDOWS]
    told = run_json(*base, "--context", context)
    expected = Reader.load(student_dir, window_settings=WindowSettings(48, 16, 16)).answer("Who wrote it?", context, 3)
    assert [answer["text"] for answer in told["answers"]] == [answer.text for answer in expected]
    assert told["answers"][0]["score"] == pytest.approx(expected[0].score)
    assert run_json(*base, "--context-file", file) == told
    piped = run(*base, "--context-file", "-", "--json", input=context)
    assert json.loads(piped.stdout) == told
    spans = run_json(*base, "--context", context, "--no-allow-no-answer")["answers"]
    assert not any(answer["no_answer"] for answer in spans)
    assert spans[0]["text"] in run(*base, "--context", context, "--no-allow-no-answer").stdout
    assert "no answer" in run(*base, "--context", context, "--no-answer-threshold", "-1e9").stdout
    assert "either --context TEXT or --context-file" in refusal(*base)
    assert "either --context TEXT or --context-file" in refusal(*base, "--context", context, "--context-file", file)
    assert "cannot read the context" in refusal(*base, "--context-file", tmp_path / "absent.txt")
    assert "top_k must be at least 1" in refusal(*base, "--context", context, "--top-k", "0")


def test_offsets_are_those_of_the_context_file_as_it_is(student_dir: Path, tmp_path: Path) -> None:
    content = "Ada Lovelace wrote it.\r\n\r\nThat was\rin 1843.\r\n"
    file = tmp_path / "windows.txt"
    file.write_bytes(content.encode())
    base = ["ask", "--model", student_dir, "--question", "When was that?", "--top-k", "1000", *WINDOWS]
    told = run_json(*base, "--context-file", file, "--no-allow-no-answer")["answers"]
    assert {answer["end"] for answer in told} >= {content.index("1843") + 4}
    for answer in told:
        assert content[answer["start"] : answer["end"]] == answer["text"]
    piped = run(*base, "--context-file", "-", "--no-allow-no-answer", "--json", input=content.encode())
    assert json.loads(piped.stdout)["answers"] == told
    file.write_bytes(b"caf\xe9")
    assert "cannot read the context" in refusal(*base, "--context-file", file)
    assert "cannot read the context" in refusal(*base, "--context-file", "-", input=b"caf\xe9")


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


def test_a_teacher_that_sees_shorter_windows_sees_them_overlap(teacher_dir: Path) -> None:
    reading = {"window_settings": WindowSettings(600, max_query_length=16), "device": "cpu"}
    teacher = load_teacher(str(teacher_dir), reading, same_windows=False)
    assert teacher.window_settings == WindowSettings(128, 42, 16)
    reading["window_settings"] = WindowSettings(600, 10, 16)
    assert load_teacher(str(teacher_dir), reading, same_windows=False).window_settings == WindowSettings(128, 10, 16)
    reading["window_settings"] = WindowSettings(100, 60, 16)
    assert load_teacher(str(teacher_dir), reading, same_windows=False).window_settings == WindowSettings(100, 60, 16)


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


def test_info(teacher_dir: Path, tmp_path: Path) -> None:
    told = run_json("info", teacher_dir)
    reader = Reader.load(teacher_dir, window_settings=WindowSettings(48, 16, 16))
    assert told["architecture"] == "BertForQuestionAnswering"
    assert told["parameters"] == reader.n_parameters
    assert told["shape"]["num_hidden_layers"] == 4
    assert told["weights_megabytes"] == pytest.approx((teacher_dir / "model.safetensors").stat().st_size / 1e6)
    assert told["fast_tokenizer"]
    assert told["run"] is None
    assert not told["unfinished_run"]
    run("student", "--teacher", teacher_dir, "--layers", "2", "--output-dir", tmp_path / "cut")
    assert run_json("info", tmp_path / "cut")["run"]["arguments"] == {"layers": 2, "which": "uniform"}
    table = run("info", tmp_path / "cut").stdout
    assert "BertForQuestionAnswering" in table
    assert "run arguments layers" in table


def test_info_refusals(teacher_dir: Path, tmp_path: Path) -> None:
    assert "holds no config.json" in refusal("info", tmp_path / "absent")
    weights = teacher_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    assert "model.safetensors cannot be read" in refusal("info", teacher_dir)
    weights.unlink()
    assert "holds no weights in safetensors" in refusal("info", teacher_dir)
    (teacher_dir / "config.json").write_text("[]")
    assert "does not hold a JSON object" in refusal("info", teacher_dir)
    (teacher_dir / "config.json").write_text("{")
    assert "cannot be read" in refusal("info", teacher_dir)


# --- recipe, report, push ------------------------------------------------------------------------------------------


@pytest.fixture
def recipe_file(teacher_dir: Path, squad_file: Path, tmp_path: Path) -> Path:
    """A recipe of one short stage."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"teacher: {teacher_dir}\ndata: {squad_file}\ndev_data: {squad_file}\noutput_dir: {tmp_path / 'out'}\n"
        "device: cpu\nprecision: fp32\nmax_seq_len: 48\ndoc_stride: 16\nmax_query_length: 16\n"
        "student: {layers: 2}\nstages: [{name: answers, method: prediction_layer, max_steps: 2, batch_size: 4}]\n"
    )
    return path


@pytest.mark.slow
def test_recipe(recipe_file: Path, tmp_path: Path) -> None:
    plan = run_json("recipe", "--config", recipe_file, "--dry-run")
    assert [stage["name"] for stage in plan["plan"]] == ["1-answers"]
    assert plan["plan"][0]["steps"] == 2
    assert not (tmp_path / "out").exists()
    shown = run("recipe", "--config", recipe_file, "--dry-run").stdout
    assert "1-answers" in shown
    assert "optimiser steps" in shown
    told = run_json("recipe", "--config", recipe_file, "--no-progress")
    assert told["steps"] == {"1-answers": 2}
    assert Path(told["directory"]) == tmp_path / "out" / "reader"
    assert "student" in told["metrics"]
    shutil.copytree(told["directory"], tmp_path / "again")
    page = run_json("report", told["directory"], tmp_path / "again", "--output", tmp_path / "both")
    assert Path(page["page"]) == tmp_path / "both" / "report.html"


def test_recipe_init_writes_what_recipe_reads(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    assert run("recipe", "init", "--output", path).exit_code == 0
    assert "train.json: no such file" in refusal("recipe", "--config", path)  # it is the user's to give
    assert "exists" in refusal("recipe", "init", "--output", path)
    path.write_text("mine")
    assert run("recipe", "init", "--output", path, "--overwrite").exit_code == 0
    assert "mine" not in path.read_text()


def test_recipe_init_looks_at_data_and_teacher(
    squad_file: Path, tiny_reader: Callable[..., Reader], tmp_path: Path
) -> None:
    teacher = tiny_reader().save(tmp_path / "looked-at")
    path = tmp_path / "recipe.yaml"
    assert run("recipe", "init", "--data", squad_file, "--teacher", teacher, "--output", path).exit_code == 0
    written = path.read_text()
    assert "8 questions" in written
    assert "4 layers, 2 heads" in written
    assert "no such file" in refusal("recipe", "init", "--data", "absent.json", "--output", tmp_path / "other.yaml")
    assert not (tmp_path / "other.yaml").exists()


def test_recipe_refusals(recipe_file: Path, tmp_path: Path) -> None:
    assert "recipe init" in refusal("recipe")
    assert "--push-to-hub" in refusal("recipe", "--config", recipe_file, "--private")
    assert "leave out one" in refusal("recipe", "--config", recipe_file, "--dry-run", "--push-to-hub", "me/it")
    recipe_file.write_text(recipe_file.read_text().replace("teacher:", "techer:"))
    assert "did you mean 'teacher'" in refusal("recipe", "--config", recipe_file)
    assert "report.json" in refusal("report", tmp_path, recipe_file.parent / "other")
    assert "not the directory of a reader" in refusal("push", tmp_path, "me/it")


def test_a_finished_recipe_is_uploaded(recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from haystack_distill.reporting import model_card as card

    sent = []
    monkeypatch.setattr(card, "push_to_hub", lambda *given, **named: sent.append((given, named)) or "https://hub/me/it")
    told = run_json("recipe", "--config", recipe_file, "--no-progress", "--push-to-hub", "me/it", "--private")
    assert told["repository"] == "https://hub/me/it"
    assert sent == [((tmp_path / "out" / "reader", "me/it"), {"private": True})]
    assert run("push", tmp_path / "out" / "reader", "me/it").stdout == "https://hub/me/it\n"
    assert sent[1][1] == {"private": None}


def test_demo_prints_one_object_whatever_it_says_on_the_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = ModuleType("haystack_distill.cli.demo")

    def run_demo(**given: Any) -> dict:
        print("on the way")
        return {"given": {name: str(value) for name, value in given.items()}, "ratio": float("nan")}

    module.run_demo = run_demo  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "haystack_distill.cli.demo", module)
    told = run_json("demo", "--haystack", "3", "--seed", "7", "--output-dir", tmp_path)
    assert told == {
        "given": {"haystack": "3", "seed": "7", "output_dir": str(tmp_path), "json": "True"},
        "ratio": None,
    }
    assert run("demo").stdout.strip() == "on the way"
    assert "--haystack is 1 (farm-haystack) or 3" in refusal("demo", "--haystack", "2")


def test_embedded_is_loaded_by_name(
    monkeypatch: pytest.MonkeyPatch, tiny_reader: Callable[..., Reader], tmp_path: Path
) -> None:
    import haystack_distill.models.embedded

    asked: list[dict] = []

    def fake(**settings: Any) -> Reader:
        asked.append(settings)
        return tiny_reader()

    monkeypatch.setattr(haystack_distill.models.embedded, "embedded_teacher", fake)
    run_json("student", "--teacher", "embedded", "--layers", "1", "--output-dir", tmp_path / "cut")
    base = ["--question", "Who?", "--context", "Ada.", "--device", "cpu"]
    run_json("ask", "--model", "embedded", *base, "--max-answer-length", "5")
    assert asked[1]["max_answer_length"] == 5


# --- how commands end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", ["nothing", "run.json", "checkpoint"])
def test_interrupting_says_how_to_resume(
    written: str, student_dir: Path, squad_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def interrupted(*_: Any) -> None:
        checkpoint = out / "checkpoints" / "checkpoint-1"
        if written != "nothing":
            checkpoint.mkdir(parents=True)
            (out / "checkpoints" / "run.json").write_text('{"run_id": "1", "method": "train"}')
        if written == "checkpoint":
            (checkpoint / "complete").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(ReaderTrainer, "train", interrupted)
    base = ["train", "--model", student_dir, "--data", squad_file, "--output-dir", out, *QUICK]
    result = run(*base, "--json")
    assert (result.exit_code, result.stdout) == (130, "")
    wanted = {
        "nothing": "run the same command again",
        "run.json": "with --resume starts from the beginning",
        "checkpoint": "with --resume goes on from the last checkpoint",
    }
    assert wanted[written] in result.stderr
    if written != "nothing":
        assert "did not finish: add --resume" in refusal(*base)


def test_what_is_there_is_not_written_over(student_dir: Path, squad_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    base = ["train", "--model", student_dir, "--data", squad_file, "--output-dir", out, *QUICK]
    told = run_json(*base)
    before = (out / "model.safetensors").read_bytes()
    assert "holds the result of a finished run: add --overwrite to train anew" in refusal(*base)
    assert run_json(*base, "--resume") == told  # not trained again: the seconds are those of then
    assert "is another one: its settings.seed differs from now" in refusal(*base, "--resume", "--seed", "3")
    assert (out / "model.safetensors").read_bytes() == before
    run_json(*base, "--overwrite", "--seed", "3")
    assert (out / "model.safetensors").read_bytes() != before
    base[base.index(out)] = student_dir
    assert "holds a config.json, which training would replace: add --overwrite" in refusal(*base)


def test_another_run_at_work(student_dir: Path, squad_file: Path, tmp_path: Path) -> None:
    base = ["train", "--model", student_dir, "--data", squad_file, "--output-dir", tmp_path / "out", *QUICK]
    with directory_lock(tmp_path / "out"):
        assert "another run is at work in" in refusal(*base)
    run_json(*base)


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, student_dir: Path) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Reader, "answer", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        run("ask", "--model", student_dir, "--question", "Who?", "--context", "Ada.", *WINDOWS)


def test_only_the_first_process_tells(teacher_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run("info", teacher_dir, "--json").stdout == ""


def test_progress_bars_stay_off_stdout(student_dir: Path, squad_file: Path, tmp_path: Path) -> None:
    base = ["train", "--model", student_dir, "--data", squad_file, "--output-dir", tmp_path / "out", *QUICK]
    assert run_json(*base, "--progress", "--log-every", "1")["command"] == "train"


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


# --- export, prune, suggest ------------------------------------------------------------------------------------------


def test_export_and_its_backends(student_dir: Path, squad_file: Path, tmp_path: Path) -> None:
    directory = tmp_path / "reader"
    shutil.copytree(student_dir, directory)
    told = run_json("export", "--model", directory, "--data", squad_file, *WINDOWS)
    assert set(told["backends"]) == {"torch", "onnx", "onnx-int8"}
    assert told["backends"]["onnx"]["metrics"] == pytest.approx(told["backends"]["torch"]["metrics"])
    assert (directory / "onnx" / "model_int8.onnx").exists()
    assert set(run_json("info", directory)["exported"]) == {"torch", "onnx", "onnx-int8"}
    asked = ["ask", "--question", "Who wrote it?", "--context", "Ada Lovelace wrote it.", *WINDOWS]
    asked += ["--precision", "fp32"]
    by_torch, by_onnx = (
        run_json(*asked, "--model", directory, "--backend", backend, "--num-threads", 1)["answers"][0]
        for backend in ("torch", "onnx")
    )
    assert by_onnx["text"] == by_torch["text"]
    assert by_onnx["score"] == pytest.approx(by_torch["score"], abs=1e-4)
    metrics = run_json("evaluate", "--model", directory, "--backend", "onnx", "--data", squad_file, *WINDOWS)["metrics"]
    assert metrics == pytest.approx(told["backends"]["onnx"]["metrics"])


def test_export_elsewhere(student_dir: Path, squad_file: Path, tmp_path: Path) -> None:
    base = ["export", "--model", student_dir, "--output-dir", tmp_path / "there", *WINDOWS]
    told = run_json(*base, "--int8", "static", "--calibration-data", squad_file, "--no-per-channel")
    assert set(told["backends"]) == {"torch", "onnx", "onnx-int8"}
    assert Reader.load(tmp_path / "there", backend="onnx-int8", window_settings=WindowSettings(48, 16, 16))
    assert not (student_dir / "onnx").exists()
    shown = run(*base, "--int8", "none", "--data", squad_file).stdout
    assert "100.0%" in shown
    assert "onnx-int8" not in shown
    record = json.loads((tmp_path / "there" / "onnx" / "export.json").read_text())
    assert record["settings"]["int8"] == "none"


def test_export_refuses(student_dir: Path, tmp_path: Path, squad_file: Path) -> None:
    for arguments, message in (
        (["export", "--model", "embedded"], "give --output-dir"),
        (["export", "--model", student_dir, "--int8", "static", *WINDOWS], "calibration data is needed"),
        (["export", "--model", student_dir, "--int8", "half"], "is not one of"),
        (["ask", "--model", "embedded", "--backend", "onnx", "--question", "q", "--context", "c"], "export --model"),
        (
            ["ask", "--model", student_dir, "--backend", "onnx", "--question", "q", "--context", "c"],
            "no onnx/model.onnx",
        ),
        (["evaluate", "--model", student_dir, "--data", squad_file, "--num-threads", "0"], "num_threads must be"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2, arguments
        assert message in " ".join(result.stderr.split()), arguments


def test_prune(student_dir: Path, squad_file: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("Ada Lovelace wrote it.\n\nThe harbour of Lindow.\n", encoding="utf-8")
    base = ["prune", "--model", student_dir, "--output-dir", tmp_path / "pruned", *WINDOWS]
    told = run_json(*base, "--corpus", squad_file, "--data", squad_file)
    assert told["tokens"] <= told["tokens_before"]
    assert told["metrics"] == pytest.approx(told["metrics_before"])  # nothing that is asked for was lost
    assert len(Reader.load(tmp_path / "pruned", window_settings=WindowSettings(48, 16, 16)).tokenizer) == told["tokens"]
    assert run(*base, "--corpus", squad_file).exit_code == 2  # not empty
    fewer = run_json(*base, "--corpus", tmp_path / "texts.txt", "--overwrite")
    assert fewer["tokens"] < told["tokens"]
    assert "metrics" not in fewer
    load_examples(squad_file).to_csv(tmp_path / "questions.csv")
    from_table = run_json(*base, "--corpus", tmp_path / "questions.csv", "--overwrite")
    assert from_table["tokens"] == told["tokens"]


def test_suggest(student_dir: Path, squad_file: Path) -> None:
    base = ["suggest", "--teacher", student_dir, "--data", squad_file, "--questions", 2, *WINDOWS]
    told = run_json(*base, "--budget", "100 MB")
    assert told["suggested"] == told["candidates"][0]
    shown = run(*base, "--budget", "10000 ms/question", "--backend", "onnx", "--num-threads", "1")
    assert "this one" in shown.stdout
    assert "haystack-distill student --teacher" in shown.stdout
    nothing = run(*base, "--budget", "0.001 MB")
    assert nothing.exit_code == 2
    assert "no student of" in nothing.stderr
    assert run(*base, "--budget", "cheap").exit_code == 2


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
            "distil-intermediate",
            *WINDOWS,
            *["--teacher", "BROKEN", "--student", "STUDENT", "--data", "DATA", "--output-dir", "OUT"],
        ),
        ("export", "--model", "BROKEN", "--output-dir", "OUT"),
        ("prune", "--model", "BROKEN", "--corpus", "DATA", "--output-dir", "OUT"),
        ("suggest", "--teacher", "BROKEN", "--budget", "10 MB"),
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


@pytest.mark.parametrize("place", ["teacher", "student.start_from", "stages.teacher"])
def test_a_recipe_names_a_broken_model(
    recipe_file: Path, tiny_reader: Callable[..., Reader], tmp_path: Path, place: str
) -> None:
    broken = tiny_reader().save(tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": {"AutoModel": "own.M"}}))
    recipe = yaml.safe_load(recipe_file.read_text())
    (tmp_path / "corpus.txt").write_text("Ada wrote it.\n" * 9)
    changed: dict[str, Any] = {"teacher": str(broken)}
    if place == "student.start_from":
        changed = {"student": {"start_from": str(broken)}}
    elif place == "stages.teacher":
        general = {"name": "general", "method": "intermediate_layers", "corpus": str(tmp_path / "corpus.txt")}
        changed = {"stages": [general | {"max_steps": 1, "teacher": str(broken)}]}
    recipe_file.write_text(yaml.safe_dump(recipe | changed))
    for dry_run in ([], ["--dry-run"]):
        assert "code of its own" in refusal("recipe", "--config", recipe_file, *dry_run)


def test_distil_refuses_a_teacher_without_a_head(
    tiny_reader: Callable[..., Reader], student_dir: Path, squad_file: Path, tmp_path: Path
) -> None:
    reader = tiny_reader()
    headless = save_model(tmp_path / "headless", reader.model.base_model, reader.tokenizer)
    arguments = (
        "--teacher",
        headless,
        "--student",
        student_dir,
        "--data",
        squad_file,
        "--output-dir",
        tmp_path / "out",
    )
    assert "the teacher's answers are random" in refusal("distil", *arguments, *QUICK)
    assert run("distil-intermediate", *arguments, *QUICK).exit_code == 0
