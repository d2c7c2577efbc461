"""The model card's front matter is what the hub accepts and says nothing that is not so; what is uploaded, and what not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import filter_repo_objects

from haystack_distill import DistilError, Reader, ReaderTrainer, TrainingSettings
from haystack_distill.data.squad.load import load_examples
from haystack_distill.evaluation.measurements import measure_reader
from haystack_distill.reporting import model_card as card
from haystack_distill.reporting.model_card import hub_name, push_to_hub, write_card
from haystack_distill.training.run_directory import RUN_FILE

METRICS = {"exact": 61.93181818, "f1": 66.7, "total": 176}
TOKEN = "hf_" + "secret" * 5


def front_matter(path: Path) -> dict[str, Any]:
    """The card's front matter, as YAML says it."""
    begin, matter, _ = path.read_text(encoding="utf-8").split("---\n", 2)
    assert begin == ""
    return yaml.safe_load(matter)


def test_names_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "teacher").mkdir(parents=True)
    for name in ("deepset/roberta-base-squad2", "squad", "bert-large-uncased"):
        assert hub_name(name) == name
    for name in (
        "runs/teacher",
        tmp_path,
        "./gone",
        "a/b/c",
        "~/x",
        "embedded",
        "train.json",
        "data/train.json.gz",
        "train.csv",
        "data/train.jsonl",
        "",
    ):
        assert hub_name(name) is None


def test_front_matter_of_hub_names(tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    path = write_card(
        tmp_path / "student",
        metrics=METRICS,
        teacher="deepset/roberta-base-squad2",
        train_data=["rajpurkar/squad_v2", "rajpurkar/squad_v2", "more.json"],
        dev_data="rajpurkar/squad_v2",
        dev_split="validation",
        license="cc-by-4.0",
        language="en",
    )
    assert path == tmp_path / "student" / "README.md"
    assert front_matter(path) == {
        "base_model": "deepset/roberta-base-squad2",
        "datasets": ["rajpurkar/squad_v2"],
        "language": "en",
        "library_name": "transformers",
        "license": "cc-by-4.0",
        "metrics": ["exact_match", "f1"],
        "pipeline_tag": "question-answering",
        "tags": ["haystack", "haystack-distill", "knowledge-distillation"],
        "model-index": [
            {
                "name": "student",
                "results": [
                    {
                        "task": {"type": "question-answering", "name": "Question answering"},
                        "dataset": {
                            "name": "rajpurkar/squad_v2",
                            "type": "rajpurkar/squad_v2",
                            "split": "validation",
                        },
                        "metrics": [
                            {"type": "exact_match", "value": 61.9318, "name": "Exact match"},
                            {"type": "f1", "value": 66.7, "name": "F1"},
                        ],
                    }
                ],
            }
        ],
    }
    results = ModelCard.load(path).data.eval_results  # the hub's own client understands it
    assert [(one.metric_type, one.metric_value, one.dataset_type) for one in results] == [
        ("exact_match", 61.9318, "rajpurkar/squad_v2"),
        ("f1", 66.7, "rajpurkar/squad_v2"),
    ]


def test_local_names_stay_out_of_the_front_matter(tmp_path: Path) -> None:
    (tmp_path / "secret place" / "teacher").mkdir(parents=True)
    path = write_card(
        tmp_path,
        metrics=METRICS,
        teacher=tmp_path / "secret place" / "teacher",
        train_data=[tmp_path / "secret place" / "squad.json"],
        dev_data=tmp_path / "secret place" / "squad.json",
    )
    matter = front_matter(path)
    assert not {"base_model", "datasets", "license", "language"} & set(matter)
    assert matter["model-index"][0]["results"][0]["dataset"] == {"name": "squad.json", "type": "custom"}
    text = path.read_text()
    assert "secret place" not in text
    assert "distilled from `teacher`" in text
    assert "Learnt from `squad.json`." in text


def test_without_metrics_there_is_no_model_index(tmp_path: Path) -> None:
    path = write_card(tmp_path, metrics={}, teacher="embedded")
    assert not {"model-index", "metrics", "base_model"} & set(front_matter(path))
    text = path.read_text()
    assert "## Results" not in text
    assert "the teacher that comes with the package" in text
    assert "## Limits" in text


def test_a_card_of_a_real_run(tiny_reader: Callable[..., Reader], squad_file: Path, tmp_path: Path) -> None:
    student, teacher = tiny_reader(seed=1, num_hidden_layers=2), tiny_reader()
    settings = TrainingSettings(max_steps=1, batch_size=4, progress=False)
    directory = tmp_path / "student"
    result = ReaderTrainer(student, directory, settings).distil_prediction_layer_from(
        teacher, squad_file, squad_file, temperature=2.0
    )
    examples = load_examples(squad_file)
    measurements = [
        measure_reader(teacher, examples, "big | <teacher>", role="teacher", timed_questions=1),
        measure_reader(student, examples, "student", role="distilled", timed_questions=1),
    ]
    (directory / "report").mkdir()
    (directory / "report" / "size-f1.png").write_bytes(b"")
    path = write_card(
        directory,
        metrics=result.metrics,
        train_data=[squad_file],
        dev_data=squad_file,
        runs=[json.loads((directory / RUN_FILE).read_text())],
        measurements=measurements,
    )
    text = path.read_text()
    assert "### Prediction layer\n" in text
    for row in (
        "| temperature | 2 |",
        "| distillation_loss_weight | 0.5 |",
        "| examples | 8 |",
        "| learning_rate | 5e-05 |",
    ):
        assert row in text
    assert "| version of torch |" in text
    assert r"big \| \<teacher\>" in text
    assert f"| f1 | {result.metrics['f1']:.6g} |" in text
    assert f"Its shape: {measurements[1].shape}." in text
    assert f"| student | {measurements[1].shape} |" in text
    assert "bert, 2 layers" in measurements[1].shape
    assert "![Size against F1](report/size-f1.png)" in text
    assert Reader.load(directory, window_settings=student.window_settings).n_parameters == student.n_parameters
    for line in text.splitlines():  # every row of a table has as many cells as its header
        assert not line.startswith("|") or line.endswith("|")


def test_a_run_of_several_methods(tmp_path: Path) -> None:
    """Each method's weight and options, and the adaptation."""
    parts = [
        {"method": "prediction_layer", "weight": 0.8, "arguments": {"temperature": 2.0}},
        {"method": "intermediate_layers", "weight": 0.2, "final_weight": 0.0, "arguments": {"layer_mapping": "skip"}},
    ]
    run = {
        "method": "prediction_layer + intermediate_layers",
        "arguments": {"parts": parts},
        "adaptation": {"name": "last_layers", "n_layers": 2},
    }
    text = write_card(tmp_path, metrics={}, runs=[run]).read_text()
    assert "### Prediction layer + Intermediate layers\n" in text
    for row in (
        "| weight of prediction_layer | 0.8 |",
        "| prediction_layer: temperature | 2 |",
        "| weight of intermediate_layers | 0.2 |",
        "| final weight of intermediate_layers | 0 |",
        "| intermediate_layers: layer_mapping | skip |",
        "| adaptation | last_layers |",
        "| last_layers: n_layers | 2 |",
    ):
        assert row in text


def test_a_method_that_is_not_registered_shows_its_class(tmp_path: Path) -> None:
    run = {"method": "MyObjective", "arguments": {"weights": {"mine": 1.0}}, "adaptation": {"name": "all"}}
    text = write_card(tmp_path, metrics={}, runs=[run]).read_text()
    assert "### MyObjective\n" in text
    assert "| adaptation | all |" in text


def test_what_the_hub_would_not_take(tmp_path: Path) -> None:
    with pytest.raises(DistilError, match="save the reader there first"):
        write_card(tmp_path / "gone", metrics={})
    with pytest.raises(DistilError, match="give dev_data"):
        write_card(tmp_path, metrics=METRICS)
    with pytest.raises(DistilError, match="has no licence 'Apache 2'"):
        write_card(tmp_path, metrics={}, license="Apache 2")
    assert not list(tmp_path.iterdir())


class FakeApi:
    """Stands in for the hub: notes what is asked of it, and refuses where told to."""

    calls: list[tuple[str, dict[str, Any]]]
    private = False
    error: Exception | None = None

    def __init__(self, token: str | None = None) -> None:
        FakeApi.calls = [("login", {"token": token})]

    def create_repo(self, repo_id: str, **arguments: Any) -> str:
        if FakeApi.error is not None:
            raise FakeApi.error
        self.calls.append(("create", {"repo_id": repo_id, **arguments}))
        return f"the hub's {repo_id}"

    def model_info(self, repo_id: str) -> "FakeApi":
        return self

    def upload_folder(self, **arguments: Any) -> None:
        self.calls.append(("upload", arguments))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    """A hub that takes everything."""
    monkeypatch.setattr(card, "HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "error", None)
    monkeypatch.setattr(FakeApi, "private", False)
    return FakeApi


@pytest.fixture
def student(tiny_reader: Callable[..., Reader], tmp_path: Path) -> Path:
    """A saved reader."""
    return tiny_reader(num_hidden_layers=1).save(tmp_path / "student")


def test_what_is_uploaded(hub: type[FakeApi], student: Path) -> None:
    assert push_to_hub(student, "me/student", token=TOKEN) == "the hub's me/student"
    (_, login), (_, create), (_, upload) = hub.calls
    assert login == {"token": TOKEN}
    assert create == {"repo_id": "me/student", "private": None, "exist_ok": True}
    assert (upload["repo_id"], upload["folder_path"]) == ("me/student", student)
    wanted = [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        RUN_FILE,
        "report/size-f1.png",
        "heads/first/model.safetensors",
    ]
    unwanted = [
        ".config.json.123-abc.tmp",
        ".git/config",
        "report/.size-f1.png.1-2.tmp",
        "checkpoints/run.json",
        "checkpoints/checkpoint-5/optimizer.pt",
        "tensorboard/events.out.tfevents.1.machine",
        "training_args.bin",
        "report.html",
        "report.json",
        "agreement.html",
        "agreement.json",
        "agreement/agreement.html",
        "agreement/agreement.json",
        "reports/today/report.html",
        "heads/first/report.json",
        "heads/first/training_args.bin",
        "heads/first/checkpoints/run.json",
        "heads/first/tensorboard/events.out.tfevents.1.machine",
    ]
    assert list(filter_repo_objects(wanted + unwanted, ignore_patterns=upload["ignore_patterns"])) == wanted


def test_a_private_reader_never_goes_public(hub: type[FakeApi], student: Path) -> None:
    with pytest.raises(DistilError, match="is public, so nothing was uploaded"):
        push_to_hub(student, "me/student", private=True)
    assert [name for name, _ in hub.calls] == ["login", "create"]
    hub.private = True
    push_to_hub(student, "me/student", private=True)
    assert hub.calls[-1][0] == "upload"
    with pytest.raises(DistilError, match="is private, so nothing was uploaded"):
        push_to_hub(student, "me/student", private=False)


def test_what_cannot_be_uploaded(hub: type[FakeApi], student: Path, tmp_path: Path) -> None:
    with pytest.raises(DistilError, match=r"config\.json, model\.safetensors, tokenizer\.json missing"):
        push_to_hub(tmp_path, "me/student")
    (tmp_path / "trained_weights.json").write_text("{}")
    with pytest.raises(DistilError, match="holds only the weights that were trained, and a reader on the hub needs"):
        push_to_hub(tmp_path, "me/student")
    hub.error = OSError(f"Illegal header value 'Bearer {TOKEN}'")
    with pytest.raises(DistilError, match="OSError: Illegal header value 'Bearer <token>'") as caught:
        push_to_hub(student, "me/student", token=TOKEN)
    assert TOKEN not in str(caught.value)
    assert caught.value.__suppress_context__


def test_errors_of_the_real_client(student: Path) -> None:
    for name in ("not a name", "me/student"):  # not valid; and offline, as the tests are
        with pytest.raises(DistilError, match=f"cannot upload .* to '{name}'"):
            push_to_hub(student, name, token=TOKEN)


def test_a_card_says_what_runs_a_bilstm_reader(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bilstm"}')
    text = write_card(tmp_path, metrics={}).read_text()
    assert "It is a BiLSTM reader" in text
    assert "`FARMReader` of\nfarm-haystack" in text
    assert "Any tool" not in text
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert "Any tool" in write_card(tmp_path, metrics={}).read_text()


@pytest.mark.parametrize(
    ("base", "words"),
    [('"/home/ann/middle"', ", and needs its base, `middle`."), ("null", " trained. haystack-distill")],
)
def test_a_card_says_what_runs_trained_weights_alone(tmp_path: Path, base: str, words: str) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "trained_weights.json").write_text(f'{{"base": {base}}}')
    text = write_card(tmp_path, metrics={}).read_text()
    assert words in text
    assert "other tools cannot load it" in text
    assert "Any tool" not in text
    assert "/home" not in text
