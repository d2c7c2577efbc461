"""The commands `export`, `prune` and `suggest`."""

import json
import shutil
from pathlib import Path

import pytest

from haystack_distill import Reader, WindowSettings
from haystack_distill.data.squad.load import load_examples
from tests.cli.command_line import WINDOWS, refusal, run, run_json


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


def test_export_does_not_replace_another_reader(student_dir: Path, teacher_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(teacher_dir, tmp_path / "there")
    base = ["export", "--model", student_dir, "--output-dir", tmp_path / "there", "--int8", "none", *WINDOWS]
    before = (tmp_path / "there" / "model.safetensors").read_bytes()
    assert "holds another reader, which would be replaced" in refusal(*base)
    assert (tmp_path / "there" / "model.safetensors").read_bytes() == before
    run_json(*base, "--overwrite")
    assert (tmp_path / "there" / "model.safetensors").read_bytes() != before
    run_json(*base)  # now it is the same


def test_export_for_openvino(student_dir: Path, squad_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    base = ["export", "--model", student_dir, "--output-dir", tmp_path / "there", *WINDOWS]
    found = run_json(*base, "--runtime", "openvino", "--data", squad_file)
    assert set(found["backends"]) == {"torch", "openvino", "openvino-int8"}
    assert set(run_json("info", tmp_path / "there")["exported"]) == {"torch", "openvino", "openvino-int8"}
    measured = ["evaluate", "--model", tmp_path / "there", "--backend", "openvino", "--num-threads", 1]
    metrics = run_json(*measured, "--data", squad_file, *WINDOWS)["metrics"]
    assert metrics == pytest.approx(found["backends"]["openvino"]["metrics"])
    by_itself = run_json("evaluate", "--model", tmp_path / "there", "--backend", "auto", "--data", squad_file, *WINDOWS)
    assert by_itself["backend"] in ("torch", "openvino", "openvino-int8")
    asked = ["ask", "--model", tmp_path / "there", "--backend", "auto", "--question", "Who?", "--context", "Ada."]
    assert run_json(*asked, *WINDOWS)["answers"]


def test_export_with_a_promise(student_dir: Path, squad_file: Path, tmp_path: Path) -> None:
    directory, other = tmp_path / "reader", tmp_path / "train.json"
    shutil.copytree(student_dir, directory)
    (directory / "README.md").write_text("# A reader\n\n## Limits\n\nMany.\n")
    other.write_text(squad_file.read_text().replace("?", " then?"))
    base = ["export", "--model", directory, "--int8", "auto", "--data", squad_file, *WINDOWS]
    printed = run(*base, "--calibration-data", other, "--max-f1-drop", "100").stdout
    assert "F1 at most 100 below" in " ".join(printed.split())
    record = json.loads((directory / "onnx" / "export.json").read_text())
    assert [one["backend"] for one in record["tried"] if one["kept"]] == ["onnx", "onnx-int8"]
    card = (directory / "README.md").read_text()
    assert card.index("## int8") < card.index("## Limits")
    found = run_json(*base, "--calibration-data", other, "--max-f1-drop", "100")
    assert {one["name"] for one in found["tried"]} == {one["name"] for one in record["tried"]}
    assert (directory / "README.md").read_text().count("## int8") == 1
    plain = run("export", "--model", directory, "--data", squad_file, *WINDOWS)
    assert "is measured on 8 questions, where a few tenths of a point are chance" in " ".join(plain.stderr.split())
    assert (directory / "README.md").read_text() == "# A reader\n\n## Limits\n\nMany.\n"


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "--runtime", "openvino", "--per-channel"], "--per-channel has no effect on OpenVINO's int8"),
        (
            ["export", "--runtime", "openvino", "--reduce-range"],
            "--reduce-range has no effect on OpenVINO's dynamic int8",
        ),
        (["export", "--int8", "none", "--reduce-range"], "--reduce-range has no effect with --int8 none"),
        (["export", "--int8", "none", "--no-reduce-range"], "--reduce-range has no effect with --int8 none"),
        (["export", "--max-answer-length", "9"], "--max-answer-length has no effect without data to measure on"),
        (["export", "--max-f1-drop", "1"], "--max-f1-drop has no effect with --int8 dynamic; use --int8 auto"),
        (["export", "--on-bad-example", "skip"], "--on-bad-example has no effect without data"),
        (["prune", "--no-answer-threshold", "1"], "--no-answer-threshold has no effect without data to measure on"),
        (["prune", "--batch-size", "4"], "--batch-size has no effect without data to measure on"),
        (["prune", "--precision", "fp32"], "--precision has no effect without data to measure on"),
        (["prune", "--text-column", "body"], "--text-column has no effect on SQuAD files"),
    ],
)
def test_options_without_effect(
    arguments: list[str], message: str, student_dir: Path, squad_file: Path, tmp_path: Path
) -> None:
    base = [*arguments, "--model", student_dir, "--output-dir", tmp_path / "out", *WINDOWS]
    base += ["--corpus", squad_file] if arguments[0] == "prune" else []
    assert message in refusal(*base)
    assert not (tmp_path / "out").exists()


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
    assert "No such option" in run(*base, "--budget", "1 MB", "--no-answer-threshold", "1").stderr
    assert "--passages has no effect on a reader without" in run(*base, "--budget", "1 MB", "--passages", "2").stderr


def test_suggest_a_speed(student_dir: Path, squad_file: Path, tmp_path: Path) -> None:
    run_json("student", "--teacher", student_dir, "--early-exit", "--output-dir", tmp_path / "fast")
    base = ["suggest", "--teacher", tmp_path / "fast", "--data", squad_file, "--questions", 2, *WINDOWS]
    made = run_json(*base, "--budget", "10000 ms/question", "--passages", "2")
    speeds = [one["speed"] for one in made["candidates"]]
    assert speeds[0] == 0
    assert speeds == sorted(speeds)
    assert made["suggested"]["f1"] == max(one["f1"] for one in made["candidates"])
    assert run(*base, "--budget", "10000 ms").stdout.count("this one") == 1
    for arguments, message in (
        (("--budget", "0.001 ms"), "no speed of"),
        (("--budget", "10 MB"), "a speed does not change the size of a model file"),
        (("--budget", "9 ms", "--backend", "onnx"), "--backend has no effect"),
        (("--budget", "9 ms", "--passages", "99"), "99 contexts with its title"),
        (("--budget", "9 ms", "--passages", "0"), "--passages must be at least 1"),
    ):
        refused = run(*base, *arguments)
        assert refused.exit_code == 2
        assert message in " ".join(refused.stderr.split())
