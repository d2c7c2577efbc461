"""The measuring scripts that are not part of `make bench` run, on tiny readers: what they print is another matter."""

import gzip
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from haystack_distill import Reader, students
from haystack_distill.export.exporting import export_reader

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict | list]:
    """Runs a script and returns what it writes with --json."""

    def run_one(name: str, *arguments: object) -> dict | list:
        target = tmp_path / "found.json"
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments), "--json", str(target)])
        runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
        return json.loads(target.read_text())

    return run_one


def test_training_against_bare_loops(
    run_script: Callable[..., dict], tiny_reader: Callable[..., Reader], squad_file: Path, tmp_path: Path
) -> None:
    model = tiny_reader(max_position_embeddings=256).save(tmp_path / "teacher")
    sizes = ("--layers", 1, "--steps", 2, "--rounds", 1, "--batch-size", 2, "--device", "cpu")
    found = run_script("gpu.py", "--teacher", model, "--data", squad_file, *sizes)
    assert [line["what"] for line in found["lines"]] == ["teacher", "labels", "answers", "layers", "joint"]
    for line in found["lines"]:
        assert line["ours"] > 0
        assert line["of_bare"] == pytest.approx(line["ours"] / line["bare"])


def test_backends(
    run_script: Callable[..., dict], tiny_reader: Callable[..., Reader], squad_file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    reader = tiny_reader(max_position_embeddings=512)
    export_reader(reader, tmp_path / "reader")
    sizes = ("--windows", 4, "--rounds", 1)
    found = run_script("backends.py", "--model", tmp_path / "reader", "--data", squad_file, *sizes)
    for shape in found.values():
        assert {name.split()[0] for name in shape["windows_per_second"]} >= {"torch", "onnx", "onnx-int8"}
        assert shape["auto"] in ("torch", "onnx")  # int8 was not measured on data, so no promise is kept
        assert shape["auto_behind_best"] >= 0


def test_early_exits(
    run_script: Callable[..., list], tiny_reader: Callable[..., Reader], squad_file: Path, tmp_path: Path
) -> None:
    model = students.early_exit(tiny_reader(max_position_embeddings=512)).save(tmp_path / "fast")
    sizes = ("--questions", 2, "--passages", 1, "--rounds", 1, "--speeds", "0,1")
    found = run_script("early_exit.py", "--model", model, "--data", squad_file, *sizes)
    rows = found[0]["rows"]
    assert [row["speed"] for row in rows] == [0, 1]
    assert rows[0]["layers_per_window"] > rows[1]["layers_per_window"] >= 1


def test_readers_served_on_every_backend(
    run_script: Callable[..., list],
    tiny_reader: Callable[..., Reader],
    squad_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    teacher = tiny_reader(max_position_embeddings=512)
    directories = [tmp_path / "teacher", tmp_path / "student"]
    for reader, directory in zip((teacher, students.from_teacher(teacher, layers=1)), directories, strict=True):
        export_reader(reader, directory, data=squad_file)
    (tmp_path / "dev-v1.1.json.gz").write_bytes(gzip.compress(squad_file.read_bytes()))
    named = [part for directory in directories for part in ("--reader", f"{directory.name}={directory}")]
    chart = tmp_path / "chart.svg"
    sizes = ("--squad", tmp_path, "--questions", 2, "--rounds", 1, "--chart", chart)
    rows = run_script("served.py", *named, *sizes)
    backends = {name: [row["backend"] for row in rows if row["reader"] == name] for name in ("teacher", "student")}
    assert backends["student"] == ["torch, fp32", "torch", "onnx", "onnx-int8"]
    assert backends["teacher"] == [rows[0]["backend"], *backends["student"]]
    assert rows[0]["backend"] in ("FARMReader", "TransformersExtractiveReader")
    assert all(row["passages_per_second"] > 0 and 0 <= row["f1"] <= 100 for row in rows)
    assert "passages a second" in chart.read_text()
