"""The command `student`."""

import json
from pathlib import Path

import torch

from haystack_distill import Reader, WindowSettings, students
from haystack_distill.reporting.model_card import write_card
from haystack_distill.utils.model_fingerprint import model_fingerprint
from tests.cli.command_line import QUICK, WINDOWS, refusal, run, run_json


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
    assert told["arguments"] == {"layers": 3, "which": "block_starts"}


def test_student_pruned(teacher_dir: Path, squad_file: Path, tmp_path: Path) -> None:
    arguments = ["student", "--teacher", teacher_dir, "--data", squad_file, "--importance-sample", "3"]
    report = run_json(*arguments, "--layers", "2", "--intermediate-size", "7", "--output-dir", tmp_path / "a")
    expected = {"layers": 2, "intermediate_size": 7, "importance_sample": 3, "seed": 42}
    assert report["arguments"] == {"data": [str(squad_file)]} | expected
    made = Reader.load(tmp_path / "a", window_settings=WindowSettings(48, 16, 16), device="cpu")
    assert (made.model.config.num_hidden_layers, made.model.config.intermediate_size) == (2, 7)
    settings = {"window_settings": WindowSettings(128, 64), "device": "cpu"}
    same = students.pruned(Reader.load(teacher_dir, **settings), squad_file, **expected)
    assert model_fingerprint(made.model) == model_fingerprint(same.model)
    record = json.loads((tmp_path / "a" / "haystack_distill.json").read_text())
    assert record["arguments"] == report["arguments"]
    unlabelled = tmp_path / "questions.jsonl"
    rows = [{"question": "Who built the harbour?", "context": "Cornelis Baak built it.", "labelled": False}]
    unlabelled.write_text("\n".join(map(json.dumps, rows)))
    report = run_json(
        "student", "--teacher", teacher_dir, "--data", unlabelled, "--layers", "2", "--output-dir", tmp_path / "c"
    )
    assert report["arguments"] == {"data": [str(unlabelled)], "layers": 2, "seed": 42}


def test_student_pruned_refusals(teacher_dir: Path, squad_file: Path, tmp_path: Path) -> None:
    base = ["student", "--teacher", teacher_dir, "--output-dir", tmp_path / "out"]
    data = ["--data", squad_file]
    assert "add --data, or choose another --which" in refusal(*base, "--layers", "2", "--which", "importance")
    for option, value in (("--heads", "1"), ("--importance-sample", "3"), ("--on-bad-example", "skip")):
        assert f"{option} has no effect without data" in refusal(*base, option, value)
    assert "hidden_size for one with fresh weights" in refusal(*base, *data, "--hidden-size", "16")
    assert "nothing is pruned" in refusal(*base, *data)
    assert "data has no effect where" in refusal(*base, *data, "--layers", "2", "--which", "last")
    assert "from 1 to" in refusal(*base, *data, "--intermediate-size", "9999")
    assert "cannot have fewer heads" in refusal(*base, *data, "--heads", "1")
    assert "importance_sample must be" in refusal(*base, *data, "--layers", "2", "--importance-sample", "0")
    assert "no such file" in refusal(*base, "--data", tmp_path / "none.json", "--layers", "2").lower()
    assert not (tmp_path / "out").exists()


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


def test_student_with_a_tokenizer(teacher_dir: Path, squad_file: Path, tmp_path: Path) -> None:
    base = ["student", "--teacher", teacher_dir, "--layers", "2", "--tokenizer", "wordpiece", "--vocab-size", "120"]
    told = run_json(*base, "--corpus", squad_file, "--output-dir", tmp_path / "own")
    assert told["arguments"]["tokenizer"] == {"algorithm": "wordpiece", "vocab_size": 120, "corpus": [str(squad_file)]}
    made = Reader.load(tmp_path / "own", window_settings=WindowSettings(48, 16, 16))
    assert len(made.tokenizer) == made.model.config.vocab_size == 120
    assert made.model.config.num_hidden_layers == 2
    out = ["--output-dir", tmp_path / "out"]
    assert "add --corpus" in refusal(*base, *out)
    assert "--text-column has no effect" in refusal(*base, *out, "--corpus", squad_file, "--text-column", "t")
    assert "--vocab-size" in refusal("student", "--teacher", teacher_dir, "--vocab-size", "9", *out)
    assert "vocab_size must be at least" in refusal(*base[:-1], "10", "--corpus", squad_file, *out)
    assert not (tmp_path / "out").exists()


def test_student_with_early_exits_learns_and_answers(teacher_dir: Path, squad_file: Path, tmp_path: Path) -> None:
    start, fast = tmp_path / "start", tmp_path / "fast"
    base = ["student", "--teacher", teacher_dir, "--early-exit", "--branch-size", "4"]
    made = run_json(*base, "--output-dir", start)
    assert made["arguments"] == {"early_exit": True, "branch_size": 4, "match_size": 32, "seed": 42}
    assert len(Reader.load(start, window_settings=WindowSettings(48, 16, 16)).model.branches) == 3
    cut = run_json(*base, "--layers", "2", "--seed", "3", "--output-dir", tmp_path / "cut")
    assert cut["arguments"] == {
        "layers": 2,
        "which": "block_starts",
        "early_exit": True,
        "branch_size": 4,
        "match_size": 32,
        "seed": 3,
    }
    learn = ["distil", "--student", start, "--data", squad_file, "--method", "self_distillation", *QUICK]
    wrong_passages = ["--transfer-data", squad_file, "--question-pool", squad_file, "--same-title"]
    assert run_json(*learn, *wrong_passages, "--output-dir", fast)["steps"] > 0
    assert "--teacher would have no effect" in refusal(*learn, "--teacher", teacher_dir, "--output-dir", fast)
    labelled = [*learn, "--method", "labels"]
    assert "--teacher would have no effect" in refusal(*labelled, "--teacher", teacher_dir, "--output-dir", fast)
    assert run_json(*labelled, "--output-dir", tmp_path / "both")["steps"] > 0
    evaluate = ["evaluate", "--model", fast, "--data", squad_file, *WINDOWS]
    assert "layers_per_window" not in run_json(*evaluate)
    assert run_json(*evaluate, "--speed", "1")["layers_per_window"] <= 1  # windows of one context compete
    ask = [
        "ask",
        "--question",
        "Who wrote it?",
        "--context",
        "Ada Lovelace wrote it in 1843.",
        *WINDOWS,
        "--speed",
        "1",
    ]
    assert run_json(*ask, "--model", fast)["answers"]
    assert "It has early exits" in write_card(fast, metrics={}).read_text()
    assert "has no early exits, so speed=1.0" in refusal(*ask, "--model", teacher_dir)
    assert "depends on the text: use it with backend='torch'" in refusal("export", "--model", fast, *WINDOWS)
    for name in ("--branch-size", "--match-size"):
        assert f"{name} has no effect" in refusal(*base[:3], name, "4", "--output-dir", tmp_path / "no")


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
    assert "give --seed instead" in refusal(*base, *out, "--shape", "seed=7")
    assert "give --teacher instead" in refusal(*base, *out, "--shape", "teacher=1")
    assert "give units as --units" in refusal(*base, *out, "--bilstm", "--shape", "units=64")
    assert "layers" in refusal(*base, *out, "--layers", "0")
    assert "1 to 4 layers, not 9" in refusal(*base, *out, "--layers", "9")
    assert "block_starts, uniform, first, last, importance or a list like 1,3,6" in refusal(
        *base, *out, "--which", "middle"
    )
    assert not (tmp_path / "out").exists()


def test_config_lists_of_layers(teacher_dir: Path, tmp_path: Path) -> None:
    config = tmp_path / "student.yaml"
    config.write_text(f"teacher: {teacher_dir}\nwhich: [2, 4]\noutput_dir: {tmp_path / 'out'}\n")
    assert run_json("student", "--config", config)["arguments"] == {"layers": 2, "which": [2, 4]}


def test_student_bilstm(teacher_dir: Path, tmp_path: Path) -> None:
    arguments = ["student", "--teacher", teacher_dir, "--bilstm", "--units", "8", "--num-hidden-layers", "2"]
    made = run_json(*arguments, "--embedding-size", "12", "--output-dir", tmp_path / "a")
    wanted = {"embeddings": "teacher", "embedding_size": 12, "units": 8, "num_hidden_layers": 2, "seed": 42}
    assert made["arguments"].items() >= wanted.items()
    reader = Reader.load(tmp_path / "a", window_settings=WindowSettings(48, 16, 16))
    assert (reader.model.config.model_type, reader.model.config.hidden_size) == ("bilstm", 16)
    assert reader.n_parameters == made["parameters"]
    out = ["--output-dir", tmp_path / "out"]
    assert "no intermediate_size; leave it out" in refusal(*arguments, *out, "--intermediate-size", "8")
    assert "--units has no effect without --bilstm" in refusal(
        "student", "--teacher", teacher_dir, *out, "--units", "8"
    )
    assert "--layers and --which cut" in refusal(*arguments, *out, "--layers", "1")
    short = [*arguments[:4], *out]
    assert "--layers and --which cut" in refusal(*short, "--layers", "1")
    (tmp_path / "vectors.txt").write_text("the 1 2\nof 1\n")
    assert "vectors.txt, line 2" in refusal(*short, "--embeddings", tmp_path / "vectors.txt")
    assert "embedding_size 33 is more than" in refusal(*short, "--embedding-size", "33")
    assert not (tmp_path / "out").exists()
