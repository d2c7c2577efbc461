"""The report is one page that needs nothing else, says what was measured, and runs compare without their models."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import datasets
import pytest

from haystack_distill import DistilError, Reader
from haystack_distill.data.squad.load import content_hash, load_examples
from haystack_distill.evaluation.measurements import ExampleResult, Measurements, measure_reader
from haystack_distill.reporting import report
from haystack_distill.reporting.report import compare_reports, write_report

HISTORY = [{"loss": 3.0, "loss_labels": 3.0, "step": 1}, {"loss": 2.0, "loss_labels": 2.0, "step": 2}]
FIGURES = {"size-f1.png", "latency-f1.png", "answer-length.png", "question-word.png", "calibration.png"}


@pytest.fixture
def examples(squad_file: Path) -> datasets.Dataset:
    """The eight questions of `squad_file`."""
    return load_examples(squad_file)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made but not drawn: for tests that look at the page's text."""
    monkeypatch.setattr(report, "png_of", lambda figure: b"\x89PNG" + bytes(20))


def made_up(
    examples: datasets.Dataset, name: str = "teacher", role: str = "teacher", right: int = 8, text: str = "said"
) -> Measurements:
    """A reader that is right on the first questions, wrong on the others, and always says `text`."""
    results = tuple(
        ExampleResult(id_, text, 0.5, float(row < right), float(row < right)) for row, id_ in enumerate(examples["id"])
    )
    score = 100 * right / len(examples)
    metrics = {"exact": score, "f1": score, "HasAns_f1": score, "NoAns_f1": 0.0, "total": len(examples)}
    return Measurements(
        name,
        role,
        2_000_000,
        8.0,
        metrics,
        40.0,
        8,
        "cpu, fp32, 1 thread",
        content_hash(examples),
        results,  # type: ignore[arg-type]
    )


class Page(HTMLParser):
    """A page's tags, each of which must be closed, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def attributes(self, name: str) -> list[str]:
        """The values of an attribute, over all tags."""
        return [attributes[name] or "" for _, attributes in self.tags if name in attributes]


def test_a_report_of_real_measurements(
    tiny_reader: Callable[..., Reader], examples: datasets.Dataset, tmp_path: Path
) -> None:
    measurements = [
        measure_reader(tiny_reader(seed=seed), examples, name, role=role, timed_questions=2)  # type: ignore[arg-type]
        for seed, (name, role) in enumerate(
            [("teacher", "teacher"), ("labels only", "labels"), ("student", "distilled")]
        )
    ]
    path = write_report(
        tmp_path / "new" / "run",
        measurements,
        examples,
        {"Prediction layer": HISTORY, "nothing logged": []},
        title="A run",
        facts={"layers": 3, "data": "train.json"},
    )
    assert path == tmp_path / "new" / "run" / "report.html"
    page = Page(path)
    for said in (
        "A run",
        "labels only",
        "8 questions",
        "the median of 2 questions",
        "cpu, fp32, 1 thread",
        "train.json",
    ):
        assert said in page.text
    for one in measurements:
        assert f"{one.metrics['f1']:.1f}" in page.text
        assert one.shape.startswith("bert, ")
        assert one.shape in page.text
    figures = FIGURES | {"loss-1-prediction-layer.png"}
    assert {file.name for file in (path.parent / "report").iterdir()} == figures
    assert all((path.parent / "report" / name).read_bytes().startswith(b"\x89PNG") for name in figures)
    assert sorted(file.name for file in path.parent.iterdir()) == ["report", "report.html", "report.json"]


def test_the_page_needs_nothing_else(examples: datasets.Dataset, tmp_path: Path) -> None:
    measurements = [made_up(examples), made_up(examples, "student", "distilled", right=5)]
    page = Page(write_report(tmp_path, measurements, examples, {"all": HISTORY}, facts={"layers": 3}))
    assert "://" not in page.source
    assert not {"script", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 6
    assert all(image["alt"] and image["src"].startswith("data:image/png;base64,") for image in images)  # type: ignore[union-attr]
    assert page.attributes("src") == [image["src"] for image in images]
    assert page.attributes("href") == ["data:,"]
    assert "url(" not in page.source
    assert "@import" not in page.source
    assert "default-src 'none'" in page.source
    # On a phone: one column, figures no wider than the page, and wide tables scroll in a box of their own.
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in page.source
    assert page.source.count("<table") == page.source.count('<div class="scroll" tabindex="0"><table') == 3
    assert re.search(r"figure img \{[^}]*max-width: 100%", page.source)


@pytest.mark.usefixtures("quick")
def test_whatever_the_data_holds_is_text(examples: datasets.Dataset, tmp_path: Path) -> None:
    nasty = "<script>alert('x')</script> & \"<img src=x onerror=y>\" {braces} $math$"
    rows = examples.to_list()
    for row in rows:
        row |= {"question": nasty, "context": f"{nasty} {row['context']}", "is_impossible": False}
        row["answers"] = {"text": [nasty], "answer_start": [0]}
    data = datasets.Dataset.from_list(rows, features=examples.features)
    measurements = [
        made_up(data, f"teacher {nasty}", text=nasty),
        made_up(data, f"student {nasty}", "distilled", right=0, text=nasty),
    ]
    page = Page(write_report(tmp_path, measurements, data, {nasty: HISTORY}, title=nasty, facts={nasty: nasty}))
    assert "<script" not in page.source
    assert "<img src=x" not in page.source
    assert page.text.count(nasty) > 5 * len(rows)
    assert {tag for tag, _ in page.tags if tag in ("script", "img")} == {"img"}
    (loss,) = (tmp_path / "report").glob("loss-*")
    assert re.fullmatch(r"loss-1-[a-z0-9-]+\.png", loss.name)


@pytest.mark.usefixtures("quick")
def test_differences_largest_first(examples: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = made_up(examples, "student", "distilled", right=8, text="")
    f1 = [1.0, 0.25, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    student = replace(student, examples=tuple(replace(one, f1=x) for one, x in zip(student.examples, f1, strict=True)))
    measurements = [made_up(examples, text="<b>"), made_up(examples, "labels only", "labels", 0), student]
    page = Page(write_report(tmp_path, measurements, examples, {}))
    table = page.source[page.source.index('<table class="texts">') :]
    questions = re.findall(r"<tr><td>(.*?)</td>", table)
    assert questions == [examples[3]["question"], examples[1]["question"]]
    assert "student: better on 0, worse on 2" in page.text
    assert "The table has 2 of these 2" in page.text
    assert "(no answer)" in page.text
    monkeypatch.setattr(report, "_DIFFERENCES", 1)
    assert "The table has 1 of these 2" in Page(write_report(tmp_path, measurements, examples, {})).text
    assert "differ" not in Page(write_report(tmp_path, measurements[:1], examples, {})).text
    same = Page(write_report(tmp_path, [measurements[0], made_up(examples, "student", "distilled")], examples, {}))
    assert "better on 0, worse on 0." in same.text


@pytest.mark.usefixtures("quick")
def test_the_summary_compares_with_the_teacher(examples: datasets.Dataset, tmp_path: Path) -> None:
    student = replace(made_up(examples, "student", "distilled", 6), parameters=1_000_000, milliseconds=16.0)
    measurements = [made_up(examples), made_up(examples, "labels only", "labels", 4), student]
    text = Page(write_report(tmp_path, measurements, examples, {})).text
    assert "keeps 75.0 % of the teacher's F1 with 50 % of its parameters and answers 2.5 times as fast" in text
    assert "training on labels alone gives 25.0 points of F1 less" in text
    assert "keeps" not in Page(write_report(tmp_path, [student], examples, {})).text


def test_figures_that_are_gone_go_and_nothing_else(examples: datasets.Dataset, tmp_path: Path) -> None:
    write_report(tmp_path, [made_up(examples)], examples, {"first": HISTORY})
    (tmp_path / "report" / "mine.png").write_text("mine")
    first = (tmp_path / "report.html").read_bytes()
    write_report(tmp_path, [made_up(examples)], examples, {"second": HISTORY})
    assert {file.name for file in (tmp_path / "report").iterdir()} == FIGURES | {"loss-1-second.png", "mine.png"}
    write_report(tmp_path, [made_up(examples)], examples, {"first": HISTORY})
    assert (tmp_path / "report.html").read_bytes() == first


@pytest.mark.usefixtures("quick")
def test_a_failed_report_leaves_the_old_one(
    examples: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_report(tmp_path, [made_up(examples)], examples, {"first": HISTORY})
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    monkeypatch.setattr(report.plots, "calibration_figure", lambda measurements: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(tmp_path, [made_up(examples, right=2)], examples, {"second": HISTORY})
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    assert path.exists()


def test_what_cannot_be_reported(examples: datasets.Dataset, tmp_path: Path) -> None:
    with pytest.raises(DistilError, match="measure at least one reader"):
        write_report(tmp_path, [], examples, {})
    with pytest.raises(DistilError, match="same name"):
        write_report(tmp_path, [made_up(examples), made_up(examples)], examples, {})
    with pytest.raises(DistilError, match="'teacher' was measured on other data"):
        write_report(tmp_path, [made_up(examples)], examples.select(range(4)), {})
    assert not list(tmp_path.glob("report*"))


@pytest.mark.usefixtures("quick")
def test_runs_compare_without_their_models(examples: datasets.Dataset, tmp_path: Path) -> None:
    teacher = made_up(examples)
    for run, right in (("three", 4), ("six", 6)):
        student = made_up(examples, "student", "distilled", right)
        slower = replace(teacher, milliseconds=41.0)  # the same teacher, timed again
        write_report(
            tmp_path / run / "student",
            [slower if run == "six" else teacher, student],
            examples,
            {"answers": HISTORY},
            facts={"layers": run, run: "alone"},
        )
    runs = [tmp_path / "three" / "student", str(tmp_path / "six" / "student")]
    path = compare_reports(runs, tmp_path / "both")
    page = Page(path)
    assert "Comparison of 2 runs" in page.text
    content = json.loads((tmp_path / "both" / "report.json").read_text())
    names = [one["name"] for one in content["measurements"]]
    assert names == ["teacher", "student (three/student)", "student (six/student)"]
    assert set(content["histories"]) == {"answers (three/student)", "answers (six/student)"}
    assert content["runs"]["three/student"] == {"layers": "three", "three": "alone"}
    assert (
        "student (three/student): better on 0, worse on 4; student (six/student): better on 0, worse on 2" in page.text
    )
    assert "The table has 4 of these 4" in page.text
    assert "://" not in page.source
    again = compare_reports([tmp_path / "both", runs[0]], tmp_path / "more")
    assert "student (six/student) (both)" in Page(again).text


@pytest.mark.usefixtures("quick")
def test_different_teachers_stay_apart(examples: datasets.Dataset, tmp_path: Path) -> None:
    for run, right in (("a", 7), ("b", 8)):
        student = made_up(examples, "student", "distilled", 3)
        write_report(tmp_path / run, [made_up(examples, right=right), student], examples, {})
    compare_reports([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    content = json.loads((tmp_path / "both" / "report.json").read_text())
    assert [one["name"] for one in content["measurements"]] == ["teacher", "student (a)", "teacher 2", "student (b)"]


@pytest.mark.usefixtures("quick")
def test_what_cannot_be_compared(examples: datasets.Dataset, tmp_path: Path) -> None:
    one, other, none = tmp_path / "one", tmp_path / "other", tmp_path / "none"
    write_report(one, [made_up(examples)], examples, {})
    fewer = examples.select(range(4))
    write_report(other, [made_up(fewer, right=2)], fewer, {})
    none.mkdir()
    output = tmp_path / "both"
    with pytest.raises(
        DistilError, match=r"other was measured on other data than .*one \(4 questions, SHA-256 .* same dev data"
    ):
        compare_reports([one, other], output)
    with pytest.raises(DistilError, match=r"none holds no report\.json: give OUTPUT_DIR/reader of a recipe"):
        compare_reports([one, none], output)
    for runs in ([], [one], [one, one / ".." / "one"]):
        with pytest.raises(DistilError, match="at least two different runs"):
            compare_reports(runs, output)
    with pytest.raises(DistilError, match="to another directory"):
        compare_reports([one, other], one)
    third = tmp_path / "third"
    write_report(third, [made_up(examples)], examples, {})
    shutil.copytree(one, tmp_path / "again")
    with pytest.raises(DistilError, match="third holds the report of a run"):
        compare_reports([one, tmp_path / "again"], third)
    compare_reports([one, tmp_path / "again"], tmp_path / "compared")
    compare_reports([one, tmp_path / "again"], tmp_path / "compared")  # in place of an earlier comparison
    whole = json.loads((one / "report.json").read_text())
    for part in ("data", "runs", "histories", "examples", "measurements"):
        for wrong in (None, 3, [3] if part != "measurements" else {}):
            (none / "report.json").write_text(json.dumps(whole | {part: wrong}))
            with pytest.raises(DistilError, match=r"report\.json lacks parts of a report"):
                compare_reports([one, none], output)
    (none / "report.json").write_text('{"format":')
    with pytest.raises(DistilError, match=r"report\.json cannot be read"):
        compare_reports([one, none], output)
    (none / "report.json").write_text('{"format": 0}')
    with pytest.raises(DistilError, match="not a report of this version"):
        compare_reports([one, none], output)
    assert not output.exists()
