"""The commands `train` and `distil`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from haystack_distill import DistilError, Reader, ReaderTrainer, TrainingSettings, WindowSettings
from haystack_distill.cli.inputs import load_teacher
from haystack_distill.cli.methods import options_of_registry
from haystack_distill.training.checkpoints import directory_lock
from haystack_distill.training.methods import METHODS
from haystack_distill.utils.options import DataclassOption
from haystack_distill.utils.registry import Registry
from haystack_distill.utils.transformers_compat import save_model
from tests.cli.command_line import QUICK, WINDOWS, refusal, run, run_json


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
        "learning_rate_schedule": "cyclic",
        "n_cycles": 2,
        "optimizer": "adam",
        "layer_decay": 0.9,
        "embedding_learning_rate": 1e-5,
        "head_learning_rate": 1e-3,
        "projection_learning_rate": 2e-3,
        "batch_size": 7,
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 0.5,
        "warmup_proportion": 0.25,
        "weight_decay": 0.0,
        "seed": 3,
        "dropout": None,
        "precision": "fp32",
        "torch_compile": True,
        "evaluate_every": 5,
        "keep_best": True,
        "best_by": "loss",
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

    def spy(self: ReaderTrainer, teacher: Any, data: Any, method: Any, dev_data: Any, **named: Any) -> None:
        seen.append((self, data, dev_data))
        raise DistilError("far enough")

    monkeypatch.setattr(ReaderTrainer, "distil", spy)
    reading = [*WINDOWS, "--max-answer-length", "9", "--no-answer-threshold", "1.5", "--device", "cpu"]
    more = tmp_path / "more.json"
    more.write_text(squad_file.read_text().replace('"q0-', '"q1-'))
    base = ["train", "--model", student_dir, "--data", squad_file, "--data", more, "--dev-data", squad_file]
    cache = tmp_path / "cache"
    config = tmp_path / "run.yaml"
    for left_out, typed in (("max_steps", True), ("n_epochs", True), ("n_epochs", False)):  # one of them has no effect
        settings = {name: value for name, value in unlike_defaults.items() if name != left_out}
        config.write_text("\n".join(f"{name}: {json.dumps(value)}" for name, value in settings.items()))
        given = flags(settings) if typed else ["--config", config]
        text = refusal(*base, "--output-dir", tmp_path / "out", *given, *reading, "--cache-dir", cache)
        assert "far enough" in text
        trainer, data, dev_data = seen.pop()
        assert trainer.settings == TrainingSettings(**settings)
        assert trainer.student.window_settings == WindowSettings(48, 16, 16)
        assert (trainer.student.max_answer_length, trainer.student.no_answer_threshold) == (9, 1.5)
        assert trainer.cache_dir == cache
        assert any(cache.rglob("*.arrow"))
        assert len(data) == 16
        assert len(dev_data) == 8


def flags(settings: dict[str, Any]) -> list[object]:
    """Settings as they are typed."""
    arguments: list[object] = []
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(flag if value else "--no-" + flag[2:])
        else:
            arguments += [flag, "none" if value is None else value]
    return arguments


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
    assert record["arguments"] == {
        "temperature": 2.0,
        "distillation_loss_weight": 0.75,
        "distillation_loss": "kl_div",
        "final_temperature": None,
        "flsw_beta": 0.0,
        "flsw_gamma": 1.0,
    }
    assert record["windows"]["max_seq_len"] == 48
    layers = ["distil", *base, "--method", "intermediate_layers", "--overwrite", *QUICK]
    assert "windows have 48 tokens, but the teacher has 32 positions" in refusal(*layers)


def test_distil_intermediate(teacher_dir: Path, student_dir: Path, squad_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    base = ["--teacher", teacher_dir, "--student", student_dir, "--data", squad_file, "--output-dir", out]
    weights = ["--hidden-loss-weight", "2", "--embedding-loss-weight", "0", "--attention-loss-weight", "0.5"]
    base = ["distil", "--method", "intermediate_layers", *base]
    told = run_json(*base, *QUICK, "--layer-mapping", "none,4", *weights)
    assert told["steps"] >= 1
    record = json.loads((out / "haystack_distill.json").read_text())
    assert record["arguments"] == {
        "layer_mapping": [None, 4],
        "embedding_loss_weight": 0.0,
        "hidden_loss_weight": 2.0,
        "attention_loss_weight": 0.5,
        "attention_loss": "mse_scores",
        "hidden_loss": "mse",
    }
    assert "is the teacher" in refusal(*base, "--output-dir", teacher_dir)


def test_a_weighted_sum_of_methods_and_an_adaptation(
    teacher_dir: Path, student_dir: Path, squad_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    base = ["distil", "--teacher", teacher_dir, "--student", student_dir, "--data", squad_file, "--output-dir", out]
    methods = ["--method", "0.8*prediction_layer", "--method", "0.2:0 * intermediate_layers", "--temperature", "2"]
    run_json(*base, *QUICK, *methods, "--layer-mapping", "skip", "--adaptation", "last_layers", "--n-layers", "2")
    record = json.loads((out / "haystack_distill.json").read_text())
    assert record["method"] == "prediction_layer + intermediate_layers"
    first, second = record["arguments"]["parts"]
    assert (first["weight"], first["arguments"]["temperature"]) == (0.8, 2.0)
    assert (second["weight"], second["final_weight"]) == (0.2, 0.0)
    assert second["arguments"]["layer_mapping"] == "skip"
    assert record["adaptation"] == {
        "name": "last_layers",
        "n_layers": 2,
        "embeddings": False,
        "save_only_trained": False,
    }
    again = tmp_path / "again"
    config = tmp_path / "run.yaml"
    config.write_text(
        "method: [0.8*prediction_layer, 0.2:0*intermediate_layers]\ntemperature: 2\nlayer_mapping: skip\n"
        f"adaptation: last_layers\nn_layers: 2\noutput_dir: {again}\n"
    )
    run_json(*base[:-2], *QUICK, "--config", config)
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_a_transfer_set(teacher_dir: Path, student_dir: Path, squad_file: Path, tmp_path: Path) -> None:
    out, more, pool = tmp_path / "out", tmp_path / "more.csv", tmp_path / "pool.txt"
    more.write_text("context\nParis is in France.\nAda came.\n")
    pool.write_text("Where?\nWho?\n")
    base = ["distil", "--teacher", teacher_dir, "--student", student_dir, "--data", squad_file, "--output-dir", out]
    transfer = ["--transfer-data", more, "--transfer-proportion", "0.25", "--question-pool", pool]
    run_json(*base, *transfer, "--questions-per-context", "2", *QUICK)
    record = json.loads((out / "haystack_distill.json").read_text())
    assert record["transfer"] == {"examples": 4, "proportion": 0.25}
    assert "--question-pool has no effect without a transfer set" in refusal(*base, "--question-pool", pool)
    assert "lacks the column" in refusal(*base, "--transfer-data", more, "--overwrite", *QUICK)


def test_an_ensemble(
    tiny_reader: Callable[..., Reader], teacher_dir: Path, student_dir: Path, squad_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    other = tiny_reader(seed=5, num_hidden_layers=1).save(tmp_path / "other")
    base = ["distil", "--teacher", teacher_dir, "--student", student_dir, "--data", squad_file, "--output-dir", out]
    run_json(*base, "--teacher", other, *QUICK)
    record = json.loads((out / "haystack_distill.json").read_text())
    assert record["teacher"]["weights"] == [0.5, 0.5]
    weighted = ["--teacher", f"3*{other}", "--teacher-average", "logits", "--overwrite"]
    run_json(*base, *weighted, *QUICK)
    record = json.loads((out / "haystack_distill.json").read_text())
    assert record["teacher"]["weights"] == [0.25, 0.75]
    assert record["teacher"]["average"] == "logits"
    assert "write it as NAME or WEIGHT*NAME" in refusal(*base, "--teacher", f"much*{other}")
    assert "has no effect with a single teacher" in refusal(*base, "--teacher-average", "logits")
    alone = ["distil", "--teacher", f"3*{other}", *base[3:]]
    assert "the weight of a single teacher has no effect" in refusal(*alone)
    assert "is given twice" in refusal(*base, "--teacher", teacher_dir)
    layers = refusal(*base, "--teacher", other, "--method", "intermediate_layers", "--overwrite", *QUICK)
    assert "only the predictions of several teachers can be averaged" in layers


def test_a_teacher_in_another_backend(teacher_dir: Path, student_dir: Path, squad_file: Path, tmp_path: Path) -> None:
    run_json("export", "--model", teacher_dir, "--int8", "none", *WINDOWS)
    records = {}
    for backend in ("torch", "onnx"):
        out = tmp_path / backend
        base = ["distil", "--student", student_dir, "--data", squad_file, "--output-dir", out]
        run_json(*base, "--teacher", teacher_dir, "--teacher-backend", backend, *QUICK)
        records[backend] = json.loads((out / "haystack_distill.json").read_text())
    assert records["onnx"]["teacher"]["backend"] == "onnx"
    assert records["onnx"]["teacher"]["weights"] != records["torch"]["teacher"]["weights"]
    losses = [[line["loss"] for line in one["history"] if "loss" in line] for one in records.values()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    given = ["--teacher", teacher_dir, "--teacher-backend", "onnx", "--overwrite", *QUICK]
    assert "gives no hidden states: load the reader with backend='torch'" in refusal(
        *base, *given, "--method", "intermediate_layers"
    )
    missing = ["--teacher", teacher_dir, "--teacher-backend", "openvino", "--overwrite", *QUICK]
    assert "openvino" in refusal(*base, *missing)
    alone = ["--method", "self_distillation", "--teacher-backend", "onnx"]
    assert "--teacher-backend has no effect without a teacher" in refusal(*base, *alone)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--embedding-loss-weight", "2"],
            (
                "--embedding-loss-weight is an option of intermediate_layers, and the method is prediction_layer: add "
                "--method intermediate_layers, or leave it out"
            ),
        ),
        (
            ["--method", "prediction_layer", "--method", "intermediate_layers", "--masked-word-weight", "1"],
            (
                "--masked-word-weight is an option of masked_language_model, and the methods are prediction_layer and "
                "intermediate_layers"
            ),
        ),
        (
            ["--method", "intermediate_layers", "--soft-target-weight", "2"],
            (
                "--soft-target-weight is an option of masked_language_model and triple_loss, and the method is "
                "intermediate_layers: add --method masked_language_model or triple_loss, or leave it out"
            ),
        ),
        (["--n-layers", "2"], "--n-layers is an option of last_layers, and the adaptation is all"),
        (["--method", "prediction-layer"], "unknown method 'prediction-layer'; did you mean 'prediction_layer'?"),
        (["--method", "often*prediction_layer"], "write it as NAME, WEIGHT*NAME or WEIGHT:WEIGHT*NAME"),
        (["--method=-1*prediction_layer"], "the weight of a method must be a number of 0 or more"),
        (["--method=1:x*prediction_layer"], "write it as NAME, WEIGHT*NAME or WEIGHT:WEIGHT*NAME"),
        (["--method=1:1*prediction_layer"], "a weight from 1.0 to 1.0 does not change; give one number"),
        (["--method", "labels", "--method", "labels"], "--method labels is given twice"),
        (["--method", "labels"], "needs no teacher; use `haystack-distill train`"),
        (["--method", "masked_language_model"], "masked_language_model needs a corpus to train on; use a recipe"),
        (["--temperature", "-1"], "temperature must be a number above 0"),
        (["--temperature", "2", "--distillation-loss", "mse"], "temperature"),
        (["--adaptation", "last_layers", "--n-layers", "0"], "n_layers must be"),
        (["--adaptation", "bias"], "'bias' is not one of all, last_layers, "),
    ],
)
def test_methods_and_options_that_do_not_fit(
    arguments: list[str], message: str, teacher_dir: Path, student_dir: Path, squad_file: Path, tmp_path: Path
) -> None:
    base = ["distil", "--teacher", teacher_dir, "--student", student_dir, "--data", squad_file, *QUICK]
    assert message in refusal(*base, "--output-dir", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_a_method_of_its_own_file_says_whether_it_needs_a_teacher(
    student_dir: Path, teacher_dir: Path, squad_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """
from dataclasses import dataclass
from typing import ClassVar

from haystack_distill.objectives.labels import Labels


@dataclass(frozen=True)
class {name}(Labels):
    \"\"\"A method of one's own.\"\"\"

    {declared}: ClassVar[bool] = {value}
"""
    declared = {"Alone": ("needs_teacher", False), "OnText": ("needs_corpus", True), "Taught": ("needs_teacher", True)}
    for name, (constant, value) in declared.items():
        (tmp_path / f"own_{name}.py").write_text(source.format(name=name, declared=constant, value=value))
        monkeypatch.setitem(METHODS.entries, name.lower(), f"own_{name}:{name}")
    monkeypatch.syspath_prepend(tmp_path)
    base = ["distil", "--student", student_dir, "--data", squad_file, "--output-dir", tmp_path / "out", *QUICK]
    assert "the method alone learns without a teacher" in refusal(*base, "--method", "alone", "--teacher", teacher_dir)
    assert "the method taught learns from a teacher" in refusal(*base, "--method", "taught")
    assert "the method ontext needs a corpus" in refusal(*base, "--method", "ontext")
    assert run_json(*base, "--method", "alone")["steps"] > 0


def test_the_former_command_names_the_new_one() -> None:
    for arguments in ([], ["--help"], ["--teacher", "embedded", "--layer-mapping", "last"]):
        assert "distil --method intermediate_layers" in refusal("distil-intermediate", *arguments)
    assert "distil-intermediate" not in run("--help").stdout


@pytest.mark.parametrize("name", METHODS)
def test_help_has_every_option_of_every_method(name: str) -> None:
    text = " ".join(run("distil", "--help").stdout.replace("│", " ").split())
    assert name in text
    for option in METHODS.options(name):
        assert "--" + option.name.replace("_", "-") in text
        first = option.help.partition(";")[0].replace("None", "none")
        assert first in text
        shared = sum(option.name in {other.name for other in METHODS.options(method)} for method in METHODS) > 1
        if shared:
            default = f"{name}: {option.help} Default: {option.default}.".replace("None", "none")
            assert default in text.replace("None", "none")
        elif option.default is not None and not isinstance(option.default, bool):  # a switch has two names
            assert f"default: {option.default}" in text


def test_an_option_of_several_entries_has_one_type() -> None:
    entries = {name: f"{__name__}:{name}" for name in ("One", "Other")}
    registry: Registry = Registry("thing", entries)
    registry.options = lambda name: [DataclassOption("x", {"One": int, "Other": str}[name], None, "")]  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="the option x has several types"):
        options_of_registry(registry)


def test_training_refusals(student_dir: Path, squad_file: Path, tmp_path: Path) -> None:
    base = ["train", "--model", student_dir, "--data", squad_file, "--output-dir", tmp_path / "out", *QUICK]
    assert "n_epochs must be a whole number" in refusal(*base, "--n-epochs", "0")
    assert "'often' is not INTEGER or auto or epoch or none" in refusal(*base, "--evaluate-every", "often")
    assert "'fp64' is not one of auto, fp32" in refusal(*base, "--precision", "fp64")
    for given in (
        ["--evaluate-every", "5"],
        ["--evaluate-every", "epoch"],
        ["--max-answer-length", "9"],
        ["--no-answer-threshold", "0"],
        ["--keep-best", "--checkpoint-every", "epoch"],
        ["--early-stopping-patience", "2"],
        ["--best-by", "loss"],
    ):
        assert f"{given[0]} has no effect without data to measure on; add --dev-data or --dev-split" in refusal(
            *base, *given
        )
    assert "--dev-split has no effect with --dev-data" in refusal(*base, "--dev-data", squad_file, "--dev-split", "0.1")
    assert "of which there are 1; give dev_data instead" in refusal(*base, "--dev-split", "0.1")
    assert "--n-epochs has no effect with --max-steps" in refusal(*base, "--max-steps", "5")
    assert "--keep-checkpoints has no effect with --checkpoint-every none" in refusal(*base, "--keep-checkpoints", "1")
    measured = [*base, "--dev-data", squad_file, "--keep-best"]
    assert "checkpoint_every=None has no effect with keep_best" in refusal(*measured)
    every = ["--checkpoint-every", "epoch", "--evaluate-every", "5"]
    assert "checkpoint_every='epoch' has no effect with keep_best" in refusal(*measured, *every)
    assert "no such file" in refusal(*base, "--data", tmp_path / "absent.json")
    assert "device 'gpu' cannot be used here" in refusal(*base, "--device", "gpu")
    assert "cannot load a reader" in refusal(*base, "--model", tmp_path / "absent")
    assert "--n-epochs" in refusal(*base, "--n-epoch", "3")
    assert "Missing option '--data'" in refusal("train", "--model", student_dir, "--output-dir", tmp_path / "out")


def test_config_is_a_whole_run_and_the_command_line_wins(student_dir: Path, squad_file: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model: {student_dir}\ndata: [{squad_file}]\noutput_dir: {tmp_path / 'out'}\n"
        "dev_data: null\nmax_seq_len: 48\ndoc_stride: 16\nmax_query_length: 16\n"
        "n_epochs: 1\nlearning_rate: 1e-3\ndropout: null\nevaluate_every: 3\ncheckpoint_every: null\n"
        "progress: no\nprecision: fp32\njson: true\n"
    )
    text = refusal("train", "--config", config)
    assert "--evaluate-every has no effect without data to measure on" in text
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
    assert "Missing option '--student'" in mistake("n_epochs: 2")
    given = ("--student", tmp_path, "--data", tmp_path, "--output-dir", tmp_path / "out")
    assert "learns from a teacher; give one with --teacher" in mistake("n_epochs: 2", *given)
    assert "absent.yaml: cannot be read" in refusal("distil", "--config", tmp_path / "absent.yaml")


def test_shorter_windows_of_a_teacher_overlap(teacher_dir: Path) -> None:
    reading = {"window_settings": WindowSettings(600, max_query_length=16), "device": "cpu"}
    teacher = load_teacher(str(teacher_dir), reading)
    assert teacher.window_settings == WindowSettings(128, 42, 16)
    reading["window_settings"] = WindowSettings(600, 10, 16)
    assert load_teacher(str(teacher_dir), reading).window_settings == WindowSettings(128, 10, 16)
    reading["window_settings"] = WindowSettings(100, 60, 16)
    assert load_teacher(str(teacher_dir), reading).window_settings == WindowSettings(100, 60, 16)


@pytest.mark.parametrize("written", ["nothing", "run.json", "checkpoint"])
def test_interrupting_says_how_to_resume(
    written: str, student_dir: Path, squad_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def interrupted(*_: Any, **__: Any) -> None:
        checkpoint = out / "checkpoints" / "checkpoint-1"
        if written != "nothing":
            checkpoint.mkdir(parents=True)
            (out / "checkpoints" / "run.json").write_text('{"run_id": "1", "method": "train"}')
        if written == "checkpoint":
            (checkpoint / "complete").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(ReaderTrainer, "distil", interrupted)
    base = ["train", "--model", student_dir, "--data", squad_file, "--output-dir", out, *QUICK]
    result = run(*base, "--json")
    assert (result.exit_code, result.stdout) == (130, "")
    wanted = {
        "nothing": "run the same command again",
        "run.json": "with --resume starts from the beginning",
        "checkpoint": "with --resume resumes from the last checkpoint",
    }
    assert wanted[written] in result.stderr
    if written != "nothing":
        assert "did not finish; add --resume" in refusal(*base)


def test_what_is_there_is_not_written_over(student_dir: Path, squad_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    base = ["train", "--model", student_dir, "--data", squad_file, "--output-dir", out, *QUICK]
    told = run_json(*base)
    before = (out / "model.safetensors").read_bytes()
    assert "holds the result of a finished run; add --overwrite to train again" in refusal(*base)
    assert run_json(*base, "--resume") == told  # not trained again: the seconds are those of then
    assert "is a different one: its settings.seed differs from now" in refusal(*base, "--resume", "--seed", "3")
    assert (out / "model.safetensors").read_bytes() == before
    run_json(*base, "--overwrite", "--seed", "3")
    assert (out / "model.safetensors").read_bytes() != before
    base[base.index(out)] = student_dir
    assert "holds a config.json, which training would replace; add --overwrite" in refusal(*base)


def test_another_run_at_work(student_dir: Path, squad_file: Path, tmp_path: Path) -> None:
    base = ["train", "--model", student_dir, "--data", squad_file, "--output-dir", tmp_path / "out", *QUICK]
    with directory_lock(tmp_path / "out"):
        assert "another run is using" in refusal(*base)
    run_json(*base)


def test_progress_bars_stay_off_stdout(student_dir: Path, squad_file: Path, tmp_path: Path) -> None:
    base = ["train", "--model", student_dir, "--data", squad_file, "--output-dir", tmp_path / "out", *QUICK]
    assert run_json(*base, "--progress", "--log-every", "1")["command"] == "train"


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
    assert run("distil", "--method", "intermediate_layers", *arguments, *QUICK).exit_code == 0
