"""A whole file: valid, complete, resumable, and the same bytes however the work is divided."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from augment import processes
from augment.augment_squad import augment_squad, make_statistics
from augment.command import main
from augment.job import alone
from augment.processes import Processes
from augment.report import AugmentReport
from augment.settings import AugmentSettings
from augment.shards import merge_shards
from haystack_distill import DataError, DistilError
from haystack_distill.data.squad.load import read_squad
from haystack_distill.utils import atomic

FACTOR = 5
Contents = dict[str, Any]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Six articles of different sizes, unanswerable questions and several answers among them."""
    articles = []
    for number in range(6):
        paragraphs = []
        for paragraph in range(1 + number % 3):
            context = (
                f"Ship {number} left Köln on day {paragraph} with forty masons, and the masons sang of the cold sea."
            )
            qas = [
                {
                    "id": f"{number}-{paragraph}-{question}",
                    "question": ["Who sang on the ship?", "Where did the ship go?"][question],
                    "answers": []
                    if question
                    else [
                        {"text": "masons", "answer_start": context.index("masons")},
                        {"text": "the masons", "answer_start": context.index("the masons")},
                    ],
                    "is_impossible": bool(question),
                }
                for question in range(2)
            ]
            paragraphs.append({"context": context, "qas": qas})
        articles.append({"title": f"Ship {number}", "paragraphs": paragraphs})
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"version": "v2.0", "data": articles}), encoding="utf-8")
    return path


def multiply(source: Path, output: Path, **changed: Any) -> AugmentReport:
    return augment_squad(source, output, **({"multiplication_factor": FACTOR, "tagger": "textblob"} | changed))


def left_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name not in ("train.json", "cache"))


def test_every_row_is_there_so_often_and_valid(source: Path, tmp_path: Path) -> None:
    before = source.read_bytes()
    watched: list[tuple[str, int, int | None]] = []
    report = multiply(
        source, tmp_path / "out.json", augment="both", on_progress=lambda *progress: watched.append(progress)
    )
    rows = read_squad(tmp_path / "out.json")
    assert len(rows) == 24 * FACTOR
    assert (report.tally.rows_in, report.tally.rows_out, report.tally.short) == (24, 24 * FACTOR, 0)
    originals = {row["id"]: row for row in read_squad(source)}
    for row in rows:
        original = originals[row["id"].split("-aug")[0]]
        assert row["answers"]["text"] == original["answers"]["text"]
        assert row["is_impossible"] == original["is_impossible"]
        assert row["title"] == original["title"]
        if row["id"] in originals:
            assert row == original
    assert sum(rows for stage, rows, _ in watched if stage == "reading") == 24
    assert sum(rows for stage, rows, _ in watched if stage == "augmenting") == 24 * FACTOR
    assert source.read_bytes() == before
    assert left_in(tmp_path) == ["out.json"]
    edits = report.tally.edits
    assert edits["mask"] > 0
    assert edits["replace"] > 0
    assert edits["ngram"] > 0


@pytest.mark.only_in("farm")
@pytest.mark.slow
def test_processes_shards_and_packing_change_no_byte(source: Path, tmp_path: Path) -> None:
    multiply(source, tmp_path / "one.json")
    wanted = (tmp_path / "one.json").read_bytes()
    multiply(source, tmp_path / "four.json", num_processes=4)
    assert (tmp_path / "four.json").read_bytes() == wanted
    make_statistics(source, tmp_path / "stats.json", tagger="textblob")
    shards = []
    for number in (3, 1, 4, 2):
        name = f"shard{number}.json" + (".gz" if number == 4 else "")
        shards.append(tmp_path / name)
        multiply(source, shards[-1], tagger="auto", shard=f"{number}/4", statistics=tmp_path / "stats.json")
    assert len(read_squad(shards[0])) < 24 * FACTOR  # a shard is a SQuAD file of its own
    merge_shards(shards, tmp_path / "merged.json")
    assert (tmp_path / "merged.json").read_bytes() == wanted
    multiply(source, tmp_path / "packed.json.gz")
    assert gzip.decompress((tmp_path / "packed.json.gz").read_bytes()) == wanted
    packed = tmp_path / "source.json.gz"
    packed.write_bytes(gzip.compress(source.read_bytes()))
    multiply(packed, tmp_path / "from_packed.json")
    assert (tmp_path / "from_packed.json").read_bytes() == wanted
    multiply(source, tmp_path / "other_seed.json", seed=1)
    assert (tmp_path / "other_seed.json").read_bytes() != wanted


def test_long_lines_merge_block_by_block(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    multiply(source, tmp_path / "one.json")
    make_statistics(source, tmp_path / "stats.json", tagger="textblob")
    shards = [tmp_path / f"shard{number}.json" for number in (1, 2, 3)]
    for number, shard in enumerate(shards, 1):
        multiply(source, shard, tagger="auto", shard=f"{number}/3", statistics=tmp_path / "stats.json")
    for block in range(60, 75):  # wherever the comma falls
        monkeypatch.setattr("augment.shards._BLOCK", block)
        merge_shards(shards, tmp_path / "merged.json")
        assert (tmp_path / "merged.json").read_bytes() == (tmp_path / "one.json").read_bytes()


class Killed(BaseException):
    """As if the process had died."""


@pytest.fixture
def dies_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the job die at the n-th file that it writes."""
    real = atomic.write_atomically

    def after(number: int) -> None:
        written = iter(range(number))

        def write_atomically(path: Path, write: Callable[[Path], object], *, durable: bool = True) -> None:
            if next(written, None) is None:
                raise Killed
            real(path, write, durable=durable)

        for module in ("augment.worker", "augment.articles", "haystack_distill.utils.atomic"):
            monkeypatch.setattr(f"{module}.write_atomically", write_atomically)

    return after


@pytest.mark.parametrize("written", [0, 1, 3, 6, 7, 8, 9, 12, 19, 20])
def test_an_interrupted_run_resumes(
    source: Path, tmp_path: Path, dies_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    multiply(source, tmp_path / "whole.json")
    with monkeypatch.context() as patch:
        dies_after(written)
        with pytest.raises(Killed):
            multiply(source, tmp_path / "out.json")
        patch.undo()
    monkeypatch.undo()
    assert not (tmp_path / "out.json").exists()
    report = multiply(source, tmp_path / "out.json")
    assert report.resumed == (written > 0)  # the plan is the first file
    assert (tmp_path / "out.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert report.tally.rows_out == 24 * FACTOR
    assert left_in(tmp_path) == ["out.json", "whole.json"]


def test_what_other_settings_left_is_not_resumed(
    source: Path, tmp_path: Path, dies_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    dies_after(10)
    with pytest.raises(Killed):
        multiply(source, tmp_path / "out.json", p_mask=0.3)
    monkeypatch.undo()
    assert not multiply(source, tmp_path / "out.json").resumed
    multiply(source, tmp_path / "whole.json")
    assert (tmp_path / "out.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def spoil(source: Path, change: Callable[[Contents], None]) -> Path:
    content = json.loads(source.read_text(encoding="utf-8"))
    change(content)
    source.write_text(json.dumps(content), encoding="utf-8")
    return source


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.only_in("farm"))])
def test_a_bad_question_is_named_and_nothing_is_left(source: Path, tmp_path: Path, processes: int) -> None:
    spoil(source, lambda c: c["data"][4]["paragraphs"][1]["qas"][0].update(question=""))
    with pytest.raises(DataError, match=r'"Ship 4" \(data\[4\]\), paragraph 1, question 0 \(id "4-1-0"\)'):
        multiply(source, tmp_path / "out.json", num_processes=processes)
    assert left_in(tmp_path) == []
    report = multiply(source, tmp_path / "out.json", on_bad_example="skip", num_processes=processes)
    assert report.tally.rows_in == 23


def test_ids_that_augmenting_gives_are_refused(source: Path, tmp_path: Path) -> None:
    multiply(source, tmp_path / "out.json")
    with pytest.raises(DataError, match=r'gives to a variant of "0-0-0": augment the file'):
        multiply(tmp_path / "out.json", tmp_path / "twice.json")
    again = multiply(tmp_path / "out.json", tmp_path / "twice.json", on_bad_example="skip")
    assert again.tally.rows_in == 24


def test_too_few_variants_are_reported(source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    report = multiply(
        source, tmp_path / "out.json", augment="question", p_pos=0, p_ng=0, tagger="none", multiplication_factor=100
    )
    assert report.tally.short == 24
    assert report.tally.rows_out < 24 * 100
    assert "24 of 24 rows have too few distinct variants" in caplog.text


def test_dropped_labels_are_marked_for_other_tools_and_for_ours(source: Path, tmp_path: Path) -> None:
    multiply(source, tmp_path / "out.json", drop_labels=True)
    qas = [
        qa
        for article in json.loads((tmp_path / "out.json").read_text())["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]
    assert {(len(qa["answers"]), qa["is_impossible"], qa["labelled"]) for qa in qas} == {(0, True, False)}
    assert set(read_squad(tmp_path / "out.json")["labelled"]) == {False}


def test_provenance_records_what_was_done(source: Path, tmp_path: Path) -> None:
    report = multiply(source, tmp_path / "out.json", provenance=True)
    found = [
        qa
        for article in json.loads((tmp_path / "out.json").read_text())["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]
    assert all(qa["augmentation"]["of"] == qa["id"].split("-aug")[0] for qa in found)
    masks = sum(qa["augmentation"].get(text, {}).get("mask", 0) for qa in found for text in ("question", "context"))
    assert masks == report.tally.edits["mask"]
    assert len(read_squad(tmp_path / "out.json")) == 24 * FACTOR


def test_outputs_that_cannot_be(source: Path, tmp_path: Path) -> None:
    (tmp_path / "there.json").write_text("mine")
    with pytest.raises(DistilError, match=r"there\.json exists.*overwrite"):
        multiply(source, tmp_path / "there.json")
    assert (tmp_path / "there.json").read_text() == "mine"
    multiply(source, tmp_path / "there.json", overwrite=True)
    with pytest.raises(DistilError, match="is the input"):
        multiply(source, source, overwrite=True)
    with pytest.raises(DistilError, match=r"directory .*nowhere does not exist"):
        multiply(source, tmp_path / "nowhere" / "out.json")
    with pytest.raises(DataError, match="no such file"):
        multiply(tmp_path / "nothing.json", tmp_path / "out.json")
    with pytest.raises(DataError, match="is a directory"):
        multiply(tmp_path, tmp_path / "out.json")
    with pytest.raises(DistilError, match="num_processes must be a whole number of at least 1"):
        multiply(source, tmp_path / "out.json", num_processes=0)
    with pytest.raises(DistilError, match="on_bad_example must be"):
        multiply(source, tmp_path / "out.json", on_bad_example="ignore")


def test_a_full_disk_is_a_clear_error_and_the_work_is_kept(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full)
        with pytest.raises(DistilError, match=r"cannot write to .*No space left.*choose another output_path"):
            multiply(source, tmp_path / "out.json")
    assert left_in(tmp_path) == [".out.json.work"]
    assert multiply(source, tmp_path / "out.json").resumed


def test_a_run_killed_while_joining_leaves_nothing_once_it_has_resumed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", dies)
        with pytest.raises(Killed):
            multiply(source, tmp_path / "out.json")
    assert multiply(source, tmp_path / "out.json").resumed
    assert left_in(tmp_path) == ["out.json"]


def test_two_runs_never_write_the_same_output(source: Path, tmp_path: Path) -> None:
    with alone(tmp_path / ".out.json.work"), pytest.raises(DistilError, match="another run is writing the same output"):
        multiply(source, tmp_path / "out.json")
    multiply(source, tmp_path / "out.json")


def test_what_was_done_when_a_process_was_killed_is_kept(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiply(source, tmp_path / "whole.json")

    def killed(*_: object, **__: object) -> None:
        raise BrokenProcessPool("a process was terminated abruptly")

    with monkeypatch.context() as patch:
        patch.setattr(processes, "wait", killed)
        with pytest.raises(DistilError, match="with fewer processes, which resumes from here"):
            multiply(source, tmp_path / "out.json", num_processes=2)
    assert (tmp_path / ".out.json.work").is_dir()
    multiply(source, tmp_path / "out.json")
    assert (tmp_path / "out.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert not (tmp_path / ".out.json.work").exists()


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them(source: Path, tmp_path: Path) -> None:
    content = json.loads(source.read_text())
    article = content["data"][2]
    content["data"] = []
    for number in range(3000):
        copy = json.loads(json.dumps(article))
        for paragraph in copy["paragraphs"]:
            for qa in paragraph["qas"]:
                qa["id"] += f"-{number}"
        content["data"].append(copy)
    source.write_text(json.dumps(content))
    arguments = ["--squad_path", str(source), "--output_path", str(tmp_path / "out.json"), "--tagger", "textblob"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-m", "augment.augment_squad", *arguments, "--num_processes", "2"]
    running = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    articles = tmp_path / ".out.json.work" / "articles"
    deadline = time.monotonic() + 120
    while not (articles.exists() and len(list(articles.iterdir())) > 20):
        assert time.monotonic() < deadline
        assert running.poll() is None
        time.sleep(0.05)
    running.kill()
    running.wait()
    time.sleep(1)
    before = sum(1 for _ in articles.iterdir())
    time.sleep(1.5)
    assert sum(1 for _ in articles.iterdir()) == before < 3000


def test_a_tokenizer_that_is_not_there_leaves_nothing(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DistilError, match="cannot load a tokenizer"):
        multiply(source, tmp_path / "out.json", tokenizer=tmp_path / "nowhere")
    with pytest.raises(DistilError, match="cannot load a masked language model"):
        multiply(source, tmp_path / "out.json", model=tmp_path / "nowhere")
    assert left_in(tmp_path) == []


def test_statistics_are_checked_as_the_rest(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DistilError, match="num_processes must be a whole number of at least 1"):
        make_statistics(source, tmp_path / "stats.json", num_processes=0)
    with pytest.raises(DistilError, match="on_bad_example must be"):
        make_statistics(source, tmp_path / "stats.json", on_bad_example="nonsense")
    assert left_in(tmp_path) == []


def test_shards_and_statistics_that_do_not_fit(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DistilError, match="a shard needs the statistics of the whole file"):
        multiply(source, tmp_path / "out.json", shard="1/2")
    stats = tmp_path / "stats.json"
    make_statistics(source, stats, tagger="textblob")
    with pytest.raises(DistilError, match=r"made with the tagger 'textblob', not with 'none'"):
        multiply(source, tmp_path / "out.json", tagger="none", shard="1/2", statistics=stats)
    other = tmp_path / "other.json"
    other.write_text(source.read_text().replace("sang", "sung"))
    with pytest.raises(DataError, match="statistics of another file"):
        multiply(other, tmp_path / "out.json", shard="1/2", statistics=stats)
    for text in ("[]", "{", '{"tagger": "none"}'):
        stats.write_text(text)
        with pytest.raises(DataError, match=r"stats\.json"):
            multiply(source, tmp_path / "out.json", tagger="auto", shard="1/2", statistics=stats)


def test_merging_wants_every_shard_once(source: Path, tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    make_statistics(source, stats, tagger="textblob")
    one, two = tmp_path / "1.json", tmp_path / "2.json"
    for number, path in ((1, one), (2, two)):
        multiply(source, path, tagger="auto", shard=f"{number}/2", statistics=stats)
    with pytest.raises(DataError, match="shard 2 of 2 is missing"):
        merge_shards([one], tmp_path / "out.json")
    with pytest.raises(DataError, match="shard 1/2 was given twice"):
        merge_shards([one, one], tmp_path / "out.json")
    with pytest.raises(DataError, match="not a shard"):
        merge_shards([one, source], tmp_path / "out.json")
    with pytest.raises(DataError, match="no such file"):
        merge_shards([one, tmp_path / "3.json"], tmp_path / "out.json")
    text = two.read_bytes()
    two.write_bytes(text.replace(b'"2/2"', b'"2/3"'))
    with pytest.raises(DataError, match="of another job"):
        merge_shards([one, two], tmp_path / "out.json")
    two.unlink()
    multiply(source, two, tagger="auto", shard="2/2", statistics=stats, seed=7)
    with pytest.raises(DataError, match="of another job"):
        merge_shards([one, two], tmp_path / "out.json")
    packed = tmp_path / "2.json.gz"
    packed.write_bytes(gzip.compress(text)[:-20])
    with pytest.raises(DataError, match="a packed shard is damaged"):
        merge_shards([one, packed], tmp_path / "out.json")
    two.write_bytes(text[:-40])
    with pytest.raises(DataError, match="cut off"):
        merge_shards([one, two], tmp_path / "out.json")
    two.write_bytes(text[: text.index(b"\n", text.index(b"\n") + 1) + 1] + b"]}\n")
    with pytest.raises(DataError, match="do not fit together"):
        merge_shards([one, two], tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()
    multiply(source, tmp_path / "single.json", tagger="auto", shard="1/1", statistics=stats)
    merge_shards([tmp_path / "single.json"], tmp_path / "out.json")
    assert len(read_squad(tmp_path / "out.json")) == 24 * FACTOR


# --- the script ------------------------------------------------------------------------------------------------------


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str], source: Path, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Runs the script on `source`; exit code and what it printed."""

    def run(*arguments: object, squad_path: Path | None = source, output: str | None = "out.json") -> tuple[int, str]:
        given = [str(argument) for argument in arguments]
        if squad_path:
            given += ["--squad_path", str(squad_path)]
        if output:
            given += ["--output_path", str(tmp_path / output)]
        with pytest.raises(SystemExit) as stopped:
            main(given)
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), " ".join((printed.out + printed.err).split())

    return run


def test_the_script_multiplies_and_prints_a_summary(script: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    code, printed = script("--multiplication_factor", 4, "--tagger", "textblob", "--augment", "context")
    assert code == 0
    assert "96" in printed
    assert re.search(r"masking\W+[\d,]+: [\d.]+ a variant", printed)
    assert re.search(r"POS-guided replacement\W+[\d,]+: [\d.]+ a variant", printed)
    assert re.search(r"n-gram sampling\W+not used", printed)
    assert "contextual" not in printed
    assert "100.0%" in printed
    assert len(read_squad(tmp_path / "out.json")) == 96


def test_the_script_makes_shards_and_merges_them(script: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    assert script("--tagger", "textblob", output="whole.json")[0] == 0
    assert script("--tagger", "textblob", "--statistics_only", output="stats.json")[0] == 0
    for number in (1, 2):
        code, _ = script("--shard", f"{number}/2", "--statistics", tmp_path / "stats.json", output=f"{number}.json")
        assert code == 0
    merge = ["--merge", tmp_path / "1.json", "--merge", tmp_path / "2.json"]
    assert script(*merge, squad_path=None)[0] == 0
    assert (tmp_path / "out.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_the_script_takes_a_tilde_for_the_home_directory(
    script: Callable[..., tuple[int, str]], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    home = f"~/{source.relative_to(tmp_path)}"
    common = ["--squad_path", home, "--tagger", "textblob"]
    code, printed = script(*common, "--statistics_only", "--output_path=~/s.json", squad_path=None, output=None)
    assert code == 0, printed
    for part in (1, 2):
        code, printed = script(
            *common,
            "--statistics=~/s.json",
            f"--shard={part}/2",
            f"--output_path=~/{part}.json",
            squad_path=None,
            output=None,
        )
        assert code == 0, printed
    merge = ["--merge=~/1.json", "--merge=~/2.json", "--output_path=~/all.json"]
    code, printed = script(*merge, squad_path=None, output=None)
    assert code == 0, printed
    assert (tmp_path / "all.json").exists()
    code, printed = script("--squad_path", home, "--preview", 2, "--tagger", "textblob", squad_path=None, output=None)
    assert code == 0, printed


def test_the_script_shows_variants_and_writes_nothing(script: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    code, printed = script("--preview", 2, "--tagger", "textblob", output=None)
    assert code == 0
    assert "0-0-0" in printed
    assert "-aug5" in printed
    assert "original" in printed
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--multiplication_factor", 0], "multiplication_factor must be"),
        (["--p_mask", 2], "p_mask must be a probability"),
        (["--p_mask", 0.7, "--p_pos", 0.7], "add up to at most 1"),
        (["--augment", "all"], "augment must be one of"),
        (["--shard", "1/2"], "needs the statistics"),
        (["--no_such_option"], "No such option"),
        (["--statistics_only", "--drop_labels"], "--drop_labels has no effect with --statistics_only"),
        (["--preview", 2, "--shard", "1/2"], "no effect with --preview"),
        (["--preview", 2, "--provenance", "--drop_labels"], "have no effect with --preview: leave them out"),
        (["--merge", "1.json", "--seed", 42], "have no effect with --merge"),
        (["--augment", "context", "--p_ng", 0.25], "p_ng has no effect where only contexts are edited"),
        (["--device", "auto"], "device has no effect without a masked language model"),
        (["--statistics", "s.json"], "statistics has no effect on a whole file"),
        (["--preview", 2, "--statistics_only"], "do not go together"),
    ],
)
def test_the_script_explains_what_is_wrong(
    script: Callable[..., tuple[int, str]], tmp_path: Path, arguments: list[object], message: str
) -> None:
    code, printed = script(*arguments)
    assert code == 2
    assert message in printed
    assert "Traceback" not in printed
    assert left_in(tmp_path) == []


def test_merging_never_touches_a_shard(script: Callable[..., tuple[int, str]], source: Path, tmp_path: Path) -> None:
    make_statistics(source, tmp_path / "stats.json", tagger="textblob")
    shards = [tmp_path / "1.json", tmp_path / "2.json"]
    for number, path in enumerate(shards, 1):
        multiply(source, path, tagger="auto", shard=f"{number}/2", statistics=tmp_path / "stats.json")
    merge = ["--merge", shards[0], "--merge", shards[1], "--overwrite"]
    code, printed = script(*merge, squad_path=None, output="2.json")
    assert (code, "is the input" in printed) == (2, True)
    code, printed = script("--merge", tmp_path / "3.json", "--overwrite", squad_path=None, output="2.json")
    assert (code, "no such file" in printed) == (2, True)


def test_the_preview_shows_ids_as_they_are(script: Callable[..., tuple[int, str]], source: Path) -> None:
    source.write_text(source.read_text().replace("0-0-0", "q[/b]"))
    code, printed = script("--preview", 1, "--tagger", "textblob", output=None)
    assert code == 0
    assert "q[/b]" in printed


def test_the_script_wants_its_paths(script: Callable[..., tuple[int, str]]) -> None:
    assert script(squad_path=None) == (2, "Error: --squad_path is missing: name the file to multiply")
    assert script(output=None)[0] == 2


@pytest.mark.only_in("farm")
@pytest.mark.slow
def test_the_three_operations_import_neither_torch_nor_transformers(source: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from augment.augment_squad import augment_squad\n"
        f"augment_squad({str(source)!r}, {str(tmp_path / 'out.json')!r}, tagger='textblob', num_processes=2)\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules), sorted(sys.modules)\n"
    )
    path = tmp_path / "program.py"
    path.write_text(f"if __name__ == '__main__':\n    {code.rstrip().replace(chr(10), chr(10) + '    ')}\n")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert len(read_squad(tmp_path / "out.json")) == 24 * 20


def test_processes_start_without_what_no_tagger_uses(tmp_path: Path) -> None:
    loaded = "[name for name in ('nltk', 'scipy', 'sklearn') if __import__('sys').modules.get(name)]"
    with Processes(2, AugmentSettings(tagger="textblob"), tmp_path) as processes:
        assert processes._pool is not None
        assert processes._pool.submit(eval, f"__import__('nltk') and {loaded}").result() == ["nltk"]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet", "json"])
def test_all_kinds_of_files_are_multiplied_alike(source: Path, tmp_path: Path, ending: str) -> None:
    rows = read_squad(source)
    table = tmp_path / f"table.{ending}"
    written = rows.remove_columns("labelled")
    {"csv": written.to_csv, "parquet": written.to_parquet}.get(ending, written.to_json)(table)
    seen: list[tuple] = []
    report = multiply(table, tmp_path / "out.json", on_progress=lambda *progress: seen.append(progress))
    found = read_squad(tmp_path / "out.json")
    assert report.tally.rows_in == len(rows)
    originals = [row for row in found if "-aug" not in row["id"]]
    assert originals == rows.to_list()
    multiply(source, tmp_path / "expected.json")
    expected = {row["id"]: row for row in read_squad(tmp_path / "expected.json")}
    assert {row["id"]: row for row in found} == expected
    assert {stage for stage, _, _ in seen} == {"reading", "augmenting"}


def test_rows_of_a_table_are_worked_on_a_hundred_at_a_time(tmp_path: Path) -> None:
    rows = [
        {"title": "T" if n < 250 else "U", "context": f"The ship {n} left.", "question": "Who?", "answer": f"ship {n}"}
        for n in range(300)
    ]
    table = tmp_path / "rows.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)))
    multiply(table, tmp_path / "out.json", multiplication_factor=2, on_bad_example="skip")
    titles = [article["title"] for article in json.loads((tmp_path / "out.json").read_text())["data"]]
    assert titles == ["T", "T", "T", "U"]


def test_a_file_of_haystack_1s_augment_squad_stays_unlabelled(source: Path, tmp_path: Path) -> None:
    content = json.loads(source.read_text(encoding="utf-8"))
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                qa["answers"] = []
        article["paragraphs"] *= 2
    source.write_text(json.dumps(content))
    multiply(source, tmp_path / "out.json")
    found = read_squad(tmp_path / "out.json")
    assert not any(found["labelled"])
    assert "0-0-0-2-aug1" in found["id"][:]
