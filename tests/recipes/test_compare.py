"""A comparison trains each student once, in equal steps, and puts only what can be compared into one table."""

import json
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from haystack_distill import DistilError, Reader, WindowSettings, students
from haystack_distill.data.squad.load import load_examples
from haystack_distill.recipes import compare
from haystack_distill.recipes.arm import run_job
from haystack_distill.recipes.compare import Processes, plan_comparison, run_comparison, split_by_article
from haystack_distill.recipes.compare import run_in_own_process as own
from haystack_distill.recipes.comparison import Arm, Comparison, arms_from_text
from haystack_distill.recipes.schema import load_recipe
from haystack_distill.reporting import comparison
from tests.conftest import squad_content

TWO_STAGES = Arm(
    "both", ({"name": "layers", "method": "intermediate_layers", "share": "0.5"}, {"name": "end", "method": "labels"})
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts are made but not drawn."""
    monkeypatch.setattr(comparison, "png_of", lambda figure: b"\x89PNG" + bytes(20))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The directories of the jobs that were done, in this process because a new one takes seconds to start."""
    done: list[str] = []

    def here(directory: Path, *_: object) -> int:
        done.append("/".join(directory.parts[-2:]))
        try:
            run_job(directory)
        except DistilError as error:
            print(error)
            return 2
        return 0

    monkeypatch.setattr(compare, "run_in_own_process", here)
    return done


@pytest.fixture
def given(tiny_reader: Callable[..., Reader], squad_file: Path, tmp_path: Path) -> Callable[..., Comparison]:
    """A comparison of labels and of two stages, three steps each, changed as asked."""
    tiny_reader(seed=1).save(tmp_path / "teacher")

    def made(**changed: Any) -> Comparison:
        usual: dict[str, Any] = {
            "teacher": str(tmp_path / "teacher"),
            "data": [str(squad_file)],
            "dev_data": [str(squad_file)],
            "output_dir": str(tmp_path / "out"),
            "arms": [*arms_from_text("labels"), TWO_STAGES],
            "layers": 2,
            "max_steps": 3,
            "settings": {"batch_size": "4", "learning_rate": "1e-3"},
            "int8": False,
            "windows": WindowSettings(max_seq_len=48, doc_stride=16, max_query_length=16),
            "precision": "fp32",
            "device": "cpu",
        }
        return Comparison(**usual | changed)

    return made


def test_the_plan(given: Callable[..., Comparison], squad_file: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "teacher: t\ndata: d\noutput_dir: o\nstages:\n"
        "- {name: a, method: intermediate_layers, n_epochs: 4, batch_size: 4}\n"
        "- {name: b, method: labels, max_steps: 2}\n"
    )
    arms = [*arms_from_text(f"labels,{recipe}"), TWO_STAGES]
    settings, grid = {"batch_size": "4"}, {"learning_rate": ["1e-3", "3e-3"]}
    plan = plan_comparison(given(arms=arms, max_steps=None, n_epochs=5, settings=settings, grid=grid))
    # 8 questions are 8 windows: 5 epochs of 2 batches; the recipe has 4 epochs of 2 batches and then 2 steps.
    assert [arm.stages for arm in plan] == [{"train": 10}, {"a": 8, "b": 2}, {"layers": 5, "end": 5}]
    assert plan[0].candidates == [{"learning_rate": "1e-3"}, {"learning_rate": "3e-3"}]
    assert not (tmp_path / "out").exists()
    recipe.write_text(  # with a transfer set the first stage has 4 epochs of 4 batches
        recipe.read_text().replace("method: intermediate_layers", f"method: prediction_layer, transfer: {squad_file}")
    )
    plan = plan_comparison(given(arms=arms_from_text(str(recipe)), max_steps=9))
    assert plan[0].stages == {"a": 8, "b": 1}
    with pytest.raises(DistilError, match="questions is 9, but there are only 8"):
        plan_comparison(given(questions=9))
    with pytest.raises(DistilError, match="arm both: stage layers: "):
        plan_comparison(given(student=narrow_student(tmp_path), layers=None))


def narrow_student(tmp_path: Path) -> str:
    """A student with another number of heads than the teacher, so that scores cannot be compared."""
    windows = WindowSettings(max_seq_len=48, doc_stride=16, max_query_length=16)
    teacher = Reader.load(tmp_path / "teacher", window_settings=windows, device="cpu")
    return str(students.from_config(teacher, num_hidden_layers=1, num_attention_heads=1).save(tmp_path / "narrow"))


def test_each_student_is_trained_once(given: Callable[..., Comparison], ran: list[str], tmp_path: Path) -> None:
    result = run_comparison(given(), progress=False)
    assert ran == ["out/teacher", "labels/seed-42", "both/seed-42"]
    teacher, labels, both = result.content["rows"]
    assert [row["name"] for row in result.content["rows"]] == ["teacher", "labels", "both"]
    assert (result.content["steps"], result.content["questions"], result.content["dev_questions"]) == (3, 8, 8)
    assert labels["trained"] == labels["parameters"] < teacher["parameters"]
    assert labels["difference"] is None
    assert both["difference"]["low"] <= both["difference"]["difference"] <= both["difference"]["high"]
    assert labels["seconds"] > 0
    record = json.loads((tmp_path / "out/arms/both/seed-42/arm.json").read_text())
    assert [(stage["method"], stage["steps"]) for stage in record["stages"]] == [
        ("intermediate_layers", 2),
        ("labels", 1),
    ]
    assert record["stages"][0]["settings"]["learning_rate"] == 1e-3
    head = 2 * 32 + 2  # which no layer's loss reaches
    assert [stage["trained"] for stage in record["stages"]] == [labels["parameters"] - head, labels["parameters"]]
    assert record["processor"]["cpu"]
    assert record["comparable"]["precision"] == "fp32"
    assert len(record["measurements"]["examples"]) == 8
    assert record["memory_megabytes"]["resident"] is None or record["memory_megabytes"]["resident"] > 50
    places = {path.name for path in (tmp_path / "out/arms/both/seed-42").iterdir()}
    assert places == {"arm.json", "job.json", "reader", "recipe.json", "recipe.yaml"}
    assert load_recipe(tmp_path / "out/arms/both/seed-42/recipe.yaml").stages[1].name == "end"
    assert {"comparison.html", "comparison.json", "comparison.png"} <= {p.name for p in (tmp_path / "out").iterdir()}

    ran.clear()  # with a seed more, what is finished stays; seconds of two calls are not put side by side
    again = run_comparison(given(n_seeds=2), progress=False)
    assert ran == ["labels/seed-43", "both/seed-43"]
    assert again.content["rows"][1]["seeds"] == [42, 43]
    assert again.content["rows"][1]["f1_by_seed"][0] == labels["f1"]
    assert again.content["rows"][1]["seconds"] is None
    assert any("No seconds" in note for note in again.content["notes"])

    with pytest.raises(
        DistilError, match=r"arm labels: .*seed-42 was finished otherwise .*train.settings.max_steps: then 3, now 4"
    ):
        run_comparison(given(max_steps=4), progress=False)
    with pytest.raises(DistilError, match=r"was finished otherwise .*other data"):
        run_comparison(given(questions=6), progress=False)
    ran.clear()  # before anything is trained
    with pytest.raises(DistilError, match=r"seed 42 cannot be put .* optimiser steps differ \(3 and 4\)"):
        run_comparison(given(arms=arms_from_text("prediction_layer"), max_steps=4), progress=False)
    assert ran == []


def test_other_models_and_data_by_the_same_name(
    given: Callable[..., Comparison],
    ran: list[str],
    tiny_reader: Callable[..., Reader],
    squad_file: Path,
    tmp_path: Path,
) -> None:
    arms = arms_from_text("labels")
    run_comparison(given(arms=arms), progress=False)
    ran.clear()
    content = squad_file.read_text()
    squad_file.write_text(content.replace("q0-0", "other"))
    with pytest.raises(DistilError, match=r"was finished otherwise \(other data; other dev_data\)"):
        run_comparison(given(arms=arms), progress=False)
    squad_file.write_text(content)
    shutil.rmtree(tmp_path / "teacher")
    tiny_reader(seed=2).save(tmp_path / "teacher")
    with pytest.raises(DistilError, match=r"was finished otherwise \(other teacher\)"):
        run_comparison(given(arms=arms), progress=False)
    with pytest.raises(DistilError, match=r"arm labels, seed 42 cannot be put .* their teacher differ"):
        run_comparison(given(arms=arms_from_text("prediction_layer")), progress=False)
    assert ran == []
    shutil.rmtree(tmp_path / "out/arms")
    run_comparison(given(arms=arms), progress=False)
    assert ran == ["out/teacher", "labels/seed-42"]


def test_a_timing_run(
    given: Callable[..., Comparison], ran: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_comparison(given(arms=arms_from_text("labels")), progress=False)
    ran.clear()
    result = run_comparison(given(time_steps=2), progress=False)  # not all by one call, but timed together
    assert ran == ["both/seed-42", "timing/labels", "timing/both"]
    assert all(row["seconds"] > 0 for row in result.content["rows"][1:])
    assert any("from a timing run" in note for note in result.content["notes"])
    assert any("No milliseconds" in note for note in result.content["notes"])
    record = json.loads((tmp_path / "out/timing/both/arm.json").read_text())
    assert [stage["steps"] for stage in record["stages"]] == [1, 1]
    expected = sum(stage["seconds"] * steps for stage, steps in zip(record["stages"], (2, 1), strict=True))
    assert result.content["rows"][2]["seconds"] == pytest.approx(expected)
    ran.clear()
    assert run_comparison(given(time_steps=2), progress=False).content["rows"] == result.content["rows"]
    assert ran == []
    monkeypatch.setattr(compare, "processor_record", lambda device: {"cpu": "another"})
    run_comparison(given(time_steps=2), progress=False)
    assert ran == ["timing/labels", "timing/both"]


def test_steps_alone_are_timed(given: Callable[..., Comparison], ran: list[str], tmp_path: Path) -> None:
    stage = {"name": "end", "method": "labels", "evaluate_every": "3", "checkpoint_every": "3"}
    result = run_comparison(given(arms=[Arm("best", (stage,))], time_steps=2), progress=False)
    assert result.failed == []
    record = json.loads((tmp_path / "out/timing/best/arm.json").read_text())
    assert not any("eval_f1" in line for line in record["stages"][0]["history"])
    ran.clear()
    other = stage | {"batch_size": "2"}
    shutil.rmtree(tmp_path / "out/arms")
    run_comparison(given(arms=[Arm("best", (other,))], time_steps=2), progress=False)
    assert ran == ["best/seed-42", "timing/best"]


def test_what_an_earlier_version_did_not_record(
    given: Callable[..., Comparison], ran: list[str], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    arms = arms_from_text("labels+prediction_layer")
    run_comparison(given(arms=arms), progress=False)
    path = next((tmp_path / "out/arms").glob("*/seed-42/arm.json"))
    record = json.loads(path.read_text())
    del record["recipe"]["stages"][0]["arguments"]["parts"][1]["arguments"]["flsw_beta"]
    record["trained"] = None
    path.write_text(json.dumps(record))
    ran.clear()
    run_comparison(given(arms=arms), progress=False)
    assert ran == []
    assert "did not record stages.train.arguments.parts.2.arguments.flsw_beta" in caplog.text
    other = Arm(arms[0].name, ({**arms[0].stages[0], "method": ["prediction_layer", "labels"]},))
    with pytest.raises(DistilError, match="was finished otherwise"):
        run_comparison(given(arms=[other]), progress=False)


def test_a_failing_arm_leaves_the_others(
    given: Callable[..., Comparison], ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = compare.run_in_own_process
    monkeypatch.setattr(
        compare, "run_in_own_process", lambda path, *rest: 9 if "both" in str(path) else here(path, *rest)
    )
    result = run_comparison(given(keep_readers=False), progress=False)
    assert result.failed == ["both, seed 42"]
    assert [row["name"] for row in result.content["rows"]] == ["teacher", "labels"]
    assert not (result.directory / "arms/labels/seed-42/reader").exists()
    ran.clear()
    monkeypatch.setattr(compare, "run_in_own_process", here)
    assert run_comparison(given(), progress=False).failed == []
    assert ran == ["both/seed-42"]


def test_values_are_chosen_on_held_out_training_questions(
    given: Callable[..., Comparison], ran: list[str], tmp_path: Path
) -> None:
    data = tmp_path / "several.json"
    data.write_text(json.dumps(squad_content(repeat=4)))
    arms = arms_from_text("labels")
    grid = {"learning_rate": ["1e-4", "1e-2"]}
    settings = {"batch_size": "4"}
    result = run_comparison(
        given(data=[str(data)], arms=arms, grid=grid, settings=settings, questions=30), progress=False
    )
    assert ran == ["out/teacher", "labels/learning_rate=1e-4", "labels/learning_rate=1e-2", "labels/seed-42"]
    row = result.content["rows"][1]
    assert [one["values"] for one in row["tried"]] == [{"learning_rate": "1e-4"}, {"learning_rate": "1e-2"}]
    best = max(row["tried"], key=lambda one: one["f1"])
    assert row["chosen"] == best["values"]
    record = json.loads((tmp_path / "out/arms/labels/seed-42/arm.json").read_text())
    assert record["stages"][0]["settings"]["learning_rate"] == float(best["values"]["learning_rate"])
    trial = json.loads((tmp_path / "out/grid/labels/learning_rate=1e-4/arm.json").read_text())
    assert trial["questions"] + len(trial["measurements"]["examples"]) <= 30
    assert trial["comparable"]["dev_data"] != record["comparable"]["dev_data"]
    ran.clear()
    run_comparison(given(data=[str(data)], arms=arms, grid=grid, settings=settings, questions=30), progress=False)
    assert ran == []


def test_a_value_of_the_grid_that_an_arm_cannot_have(given: Callable[..., Comparison]) -> None:
    arms = arms_from_text("prediction_layer,prediction_layer(distillation_loss=mse)")
    with pytest.raises(DistilError, match=r"temperature=2.*\(with temperature=2 of the grid; an arm keeps the value"):
        plan_comparison(given(arms=arms, grid={"temperature": ["1", "2"]}))
    arms = arms_from_text("prediction_layer,prediction_layer(distillation_loss=mse, temperature=1)")
    assert plan_comparison(given(arms=arms, grid={"temperature": ["1", "2"]}))


def test_a_grid_that_changes_later(given: Callable[..., Comparison], ran: list[str], tmp_path: Path) -> None:
    """What was tried is known by its values, and a finished student of other values before anything is tried."""
    data = tmp_path / "several.json"
    data.write_text(json.dumps(squad_content(repeat=4)))
    usual = {"data": [str(data)], "arms": arms_from_text("labels"), "settings": {"batch_size": "4"}}
    run_comparison(given(**usual, grid={"learning_rate": ["1e-4", "1e-2"]}), progress=False)
    chosen = json.loads((tmp_path / "out/arms/labels/seed-42/arm.json").read_text())["choice"]["chosen"]
    ran.clear()
    more = given(**usual, grid={"learning_rate": ["1e-9", "1e-2", "1e-4"]})
    run_comparison(more, progress=False)
    assert ran == ["labels/learning_rate=1e-9"]
    ran.clear()
    with pytest.raises(DistilError, match=rf"was finished with learning_rate={chosen['learning_rate']}, which is not"):
        run_comparison(given(**usual, grid={"learning_rate": ["3e-3", "4e-3"]}), progress=False)
    assert ran == []


def test_a_student_that_exists_is_one_for_all_arms(
    given: Callable[..., Comparison], tiny_reader: Callable[..., Reader], tmp_path: Path
) -> None:
    """Also where an arm begins on a corpus: it then takes the encoder of that reader."""
    directory = tiny_reader(num_hidden_layers=2).save(tmp_path / "student")
    text = {"max_seq_len": "24", "buffer_windows": "16"}
    first = {"name": "g", "method": {"name": "intermediate_layers"}, "corpus": text}
    arms = [*arms_from_text("labels"), Arm("general first", (first, {"name": "p", "method": "prediction_layer"}))]
    prepared = compare._Prepared(given(arms=arms, student=str(directory), layers=None), tmp_path / "scratch")
    one, other = (prepared.comparable[arm.name]["student"] for arm in arms)
    assert one == other
    assert one["start_from_weights"]


def test_a_teacher_may_be_named_otherwise(
    given: Callable[..., Comparison], ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = arms_from_text("labels")
    run_comparison(given(arms=arms), progress=False)
    ran.clear()
    monkeypatch.chdir(tmp_path)
    run_comparison(given(arms=arms, teacher="teacher"), progress=False)
    assert ran == []


def test_data_of_a_stage_has_no_held_out_articles(given: Callable[..., Comparison], tmp_path: Path) -> None:
    content = squad_content(repeat=4)
    for number, article in enumerate(content["data"]):
        for paragraph in article["paragraphs"]:
            paragraph["context"] += f" Edition {number}."
    data = tmp_path / "several.json"
    data.write_text(json.dumps(content))
    stage = {"name": "a", "method": "prediction_layer", "data": str(data)}
    transfer = {"data": str(data), "proportion": "0.25"}
    other = {"name": "a", "method": "prediction_layer", "transfer": transfer}
    changed = {"data": [str(data)], "grid": {"learning_rate": ["1e-3"]}, "settings": {}}
    sources = [{"data": str(data), "teacher": teacher} for teacher in ("none", str(tmp_path / "teacher"))]
    parts = {"name": "a", "method": "prediction_layer", "sources": sources}
    arms = [Arm("own", (stage,)), Arm("more", (other,)), Arm("parts", (parts,))]
    comparison = given(arms=arms, **changed)
    prepared = compare._Prepared(comparison, tmp_path / "scratch")
    held_out = set(load_examples(prepared.held_out)["title"])
    assert len(held_out) == 1
    own, more, third = (prepared.recipe(arm, 42, [3], tmp_path, trial=True)[1].stages[0] for arm in comparison.arms)
    assert own.data is not None
    assert more.transfer is not None
    assert more.transfer.proportion == 0.25
    assert third.sources is not None
    for files in (own.data, more.transfer.data, third.sources[0].data):
        assert set(load_examples(files)["title"]) == {f"Article {number}" for number in range(4)} - held_out
    final = prepared.recipe(comparison.arms[0], 42, [3], tmp_path)[1].stages[0]
    assert final.data == [str(data)]
    document = {"version": "v2.0", "data": [one for one in content["data"] if one["title"] in held_out]}
    data.with_name("one.json").write_text(json.dumps(document))
    leaking = Arm("leaking", (stage | {"data": str(data.with_name("one.json"))},))
    with pytest.raises(DistilError, match="arm leaking: stage a: data: all of it is about the articles"):
        plan_comparison(given(arms=[leaking], **changed))


def test_articles_are_held_out_whole(tmp_path: Path, squad_file: Path) -> None:
    path = tmp_path / "several.json"
    path.write_text(json.dumps(squad_content(repeat=10)))
    rest, held = split_by_article(load_examples(path), 0.25)
    assert (len(rest), len(held)) == (56, 24)
    assert not set(rest["title"]) & set(held["title"])
    again = split_by_article(load_examples(path), 0.25)[1]
    assert again["id"] == held["id"]
    rest, held = split_by_article(load_examples(squad_file), 0.1)  # one article: by context
    assert len(rest) + len(held) == 8
    assert not set(rest["context"]) & set(held["context"])
    split_by_article(load_examples(squad_file), 0.1, cache_dir=tmp_path / "own")
    assert (tmp_path / "own" / "examples").is_dir()
    one = load_examples(squad_file).select(range(2))
    with pytest.raises(DistilError, match="cannot be divided by article"):
        split_by_article(one, 0.1)


def test_the_teacher_in_int8(
    given: Callable[..., Comparison], ran: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = compare.run_in_own_process
    labels = arms_from_text("labels")
    monkeypatch.setattr(compare, "find_spec", lambda name: None)
    result = run_comparison(given(arms=labels, int8=True), progress=False)
    assert any("onnx and onnxruntime is not installed" in note for note in result.content["notes"])
    monkeypatch.setattr(compare, "find_spec", lambda name: True)
    monkeypatch.setattr(
        compare, "run_in_own_process", lambda path, *rest: 2 if "int8" in str(path) else here(path, *rest)
    )
    result = run_comparison(given(arms=labels, int8=True), progress=False)
    assert any("its export failed" in note for note in result.content["notes"])
    assert result.failed == []
    monkeypatch.setattr(compare, "run_in_own_process", here)
    rows = run_comparison(given(arms=labels, int8=True), progress=False).content["rows"]
    assert [row["name"] for row in rows] == ["teacher", "teacher in int8 (ONNX Runtime)", "labels"]
    monkeypatch.setattr(compare, "run_in_own_process", lambda path, *rest: 2)
    with pytest.raises(DistilError, match="the teacher could not be measured"):
        run_comparison(given(arms=labels, output_dir=str(tmp_path / "other")), progress=False)


@pytest.mark.only_in("farm")
@pytest.mark.slow
def test_a_process_of_its_own(
    given: Callable[..., Comparison], ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = compare.run_in_own_process
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setattr(
        compare,
        "run_in_own_process",
        lambda path, *rest: own(path, *rest) if "labels" in str(path) else here(path, *rest),
    )
    result = run_comparison(given(arms=arms_from_text("labels")), progress=False)
    assert (result.failed, ran) == ([], ["out/teacher"])
    assert result.content["rows"][1]["seconds"] > 0


# --- several at the same time --------------------------------------------------------------------------------------


@pytest.mark.only_in("haystack")
@pytest.mark.slow
def test_in_parallel_the_students_are_the_same(
    given: Callable[..., Comparison], ran: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In two processes at once as in this one, one after the other."""
    one = run_comparison(given(output_dir=str(tmp_path / "one")), progress=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(compare, "run_in_own_process", own)
    two = run_comparison(given(parallel=2, output_dir=str(tmp_path / "two")), progress=False)
    assert (two.failed, two.content["rows"][1]["seconds"]) == ([], None)
    assert one.content["rows"][1]["seconds"] is not None
    for name in ("f1_by_seed", "exact", "trained"):
        assert [row.get(name) for row in two.content["rows"]] == [row.get(name) for row in one.content["rows"]]
    for record in two.directory.glob("arms/*/seed-*/arm.json"):
        losses, before = (
            [
                line["loss"]
                for stage in json.loads(path.read_text())["stages"]
                for line in stage["history"]
                if "loss" in line
            ]
            for path in (record, one.directory / record.relative_to(two.directory))
        )
        assert losses == before


def test_so_many_are_at_work_at_once(
    given: Callable[..., Comparison], ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, both, one_by_one = compare.run_in_own_process, threading.Barrier(2), threading.Lock()
    threads: list[str] = []

    def at_once(directory: Path, processes: Processes, environment: dict[str, str] | None) -> int:
        if "seed-" not in directory.name:
            assert environment is None
            return here(directory)
        assert environment is not None
        threads.append(environment["OMP_NUM_THREADS"])
        both.wait(timeout=30)  # breaks unless the other arm is at work too
        with one_by_one:  # a thread's random numbers are those of the process
            return here(directory)

    monkeypatch.setattr(compare, "run_in_own_process", at_once)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert run_comparison(given(parallel=2), progress=False).failed == []
    assert threads == [str(max(1, torch.get_num_threads() // 2))] * 2
    assert sorted(ran) == ["both/seed-42", "labels/seed-42", "out/teacher"]


@pytest.mark.parametrize("grid", [{}, {"learning_rate": ["1e-4", "2e-4", "3e-4"]}], ids=["students", "candidates"])
def test_an_interruption_stops_all_of_them(
    grid: dict[str, list[str]],
    given: Callable[..., Comparison],
    ran: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    data = tmp_path / "several.json"
    data.write_text(json.dumps(squad_content(repeat=4)))
    here, other, codes = compare.run_in_own_process, threading.Event(), []
    begun: list[Path] = []

    def interrupted(directory: Path, processes: Processes, *_: object) -> int:
        if directory.name == "teacher":
            return here(directory)
        begun.append(directory)
        if len(begun) == 2:
            assert other.wait(timeout=30)
            raise KeyboardInterrupt
        threading.Timer(0.5, other.set).start()
        codes.append(processes.run(["sleep", "60"]))
        return codes[-1]

    monkeypatch.setattr(compare, "run_in_own_process", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_comparison(given(data=[str(data)], parallel=2, grid=grid, settings={"batch_size": "4"}), progress=False)
    assert codes == [-signal.SIGTERM]  # one was at work, and none was begun after it


def test_stopped_processes() -> None:
    processes = Processes()
    assert processes.run([sys.executable, "-c", "raise SystemExit(3)"]) == 3
    processes.stop()
    with pytest.raises(DistilError, match="stopped"):
        processes.run([sys.executable, "-c", "pass"])


def test_one_that_is_left_has_the_machine_to_itself(
    given: Callable[..., Comparison], ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_comparison(given(arms=arms_from_text("labels")), progress=False)
    here, environments = compare.run_in_own_process, []

    def noted(directory: Path, processes: Processes, environment: object) -> int:
        environments.append(environment)
        return here(directory)

    monkeypatch.setattr(compare, "run_in_own_process", noted)
    run_comparison(given(parallel=4), progress=False)
    assert environments == [None]
