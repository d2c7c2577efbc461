"""The commands `evaluate`, `ask` and `info`."""

import json
from pathlib import Path

import pytest

from haystack_distill import Reader, WindowSettings
from haystack_distill.data.squad.load import load_examples
from tests.cli.command_line import QUICK, WINDOWS, refusal, run, run_json


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


def test_evaluate(student_dir: Path, squad_file: Path, tmp_path: Path) -> None:
    predictions = tmp_path / "predictions.json"
    base = ["evaluate", "--model", student_dir, "--data", squad_file, *WINDOWS]
    told = run_json(*base, "--predictions", predictions)
    reader = Reader.load(student_dir, window_settings=WindowSettings(48, 16, 16))
    assert told["metrics"] == pytest.approx(reader.evaluate(str(squad_file)))
    assert len(json.loads(predictions.read_text())) == 8
    table = run(*base).stdout
    assert "metrics f1" in table
    before = squad_file.read_bytes()
    assert "is the data, which it would replace" in refusal(*base, "--predictions", squad_file)
    assert squad_file.read_bytes() == before
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
    silent = ["--no-allow-no-answer", "--no-answer-threshold", "1"]
    assert "--no-answer-threshold has no effect with --no-allow-no-answer" in refusal(*base, *silent, "--context", "x")
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
    assert run_json("info", tmp_path / "cut")["run"]["arguments"] == {"layers": 2, "which": "block_starts"}
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
