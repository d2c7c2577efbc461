"""The model card: a reader's README.md with front matter that the hub understands; and the way to the hub."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from haystack_distill.data.squad.tables import FILE_ENDINGS
from haystack_distill.errors import DistilError
from haystack_distill.evaluation.measurements import Measurements
from haystack_distill.reporting.licences import require_language, require_licence
from haystack_distill.utils.atomic import write_atomically
from haystack_distill.utils.files import expand_user

CARD_FILE = "README.md"

# Not for others: hidden and half-written files, checkpoints with optimiser states, TensorBoard's logs (their names
# hold the machine's), and what quotes the data: it may be private.
LEFT_AT_HOME = (
    ".*",
    "*/.*",
    "*.tmp",
    "checkpoints/*",
    "tensorboard/*",
    "training_args.bin",
    "report.html",
    "report.json",
)

_METHODS = {
    "train": "Trained on labels",
    "distil_intermediate_layers": "Distilled from the teacher's layers",
    "distil_prediction_layer": "Distilled from the teacher's answers",
}
_USE = """It finds the answer to a question in a text that it is given, as a part of that text.

## How to use it

Any tool that loads question answering models from the Hugging Face hub runs it. With haystack-distill:

```python
from haystack_distill import Reader

reader = Reader.load("<this directory, or its name on the hub>")
print(reader.answer("Who wrote it?", "Ada Lovelace wrote it in 1843.")[0].text)
```"""
_LIMITS = """## Limits

- It answers with words of the text it is given. Where the text is wrong, so is the answer, and where the text does not
  hold the answer, it may give one all the same.
- Its score is not a promise: how often an answer of a given score is right depends on the data.
- On texts and questions unlike those it was measured on, expect less; measure it on your own.
- What its teacher and its data got wrong, biases included, it may have learnt. Their licences may bind it."""
_METRICS = {"exact": ("exact_match", "Exact match"), "f1": ("f1", "F1")}


def hub_name(name: str | Path) -> str | None:
    """`name` where it can only be a name on the hub; None for files and directories and for the embedded teacher."""
    text = str(name)
    if text == "embedded" or text.lower().endswith(FILE_ENDINGS) or expand_user(text).exists():
        return None
    try:
        validate_repo_id(text)
    except HFValidationError:
        return None
    return text


def write_card(
    directory: str | Path,
    *,
    metrics: Mapping[str, float],
    teacher: str | Path | None = None,
    train_data: Sequence[str | Path] = (),
    dev_data: str | Path | None = None,
    dev_split: str | None = None,
    runs: Sequence[Mapping[str, Any]] = (),
    measurements: Sequence[Measurements] = (),
    license: str | None = None,
    language: str | None = None,
) -> Path:
    """Write a reader's model card to `README.md` in its directory; a card that is there is replaced.

    Teacher and data go to the front matter (`base_model`, `datasets`) where they are names on the hub. Of a local path
    the card says only the last part.

    Args:
        directory: The reader's directory; its name is the model's.
        metrics: SQuAD metrics of the reader on `dev_data`, in per cent; may be empty.
        teacher: The teacher, as it was loaded: a hub name, a directory or "embedded".
        train_data: What it learnt from: hub names or files.
        dev_data: What it was measured on: a hub name or a file.
        dev_split: Which split of `dev_data`, where it is from the hub.
        runs: What was done, in order: the records that runs leave in `utils.model_files.RUN_FILE`.
        measurements: The reader and those it is compared with, for the table of results.
        license: A licence as the hub calls it, such as "apache-2.0". None states none: teacher and data may bind it.
        language: A language code, such as "en".

    Returns:
        The path of the card.

    Raises:
        DistilError: No such directory, metrics without `dev_data`, or something the hub would not take.
    """
    directory = expand_user(directory)
    if not directory.is_dir():
        raise DistilError(f"{directory} is not there: save the reader first, its card goes beside it")
    if metrics and dev_data is None:
        raise DistilError("metrics mean nothing without the data they were measured on: give dev_data, too")
    require_licence(license)
    require_language(language)
    name = directory.resolve().name
    hub_data = [found for found in map(hub_name, train_data) if found is not None]
    shown = {key: value for key, value in metrics.items() if key in _METRICS}
    try:
        data = ModelCardData(
            base_model=None if teacher is None else hub_name(teacher),
            datasets=list(dict.fromkeys(hub_data)) or None,
            language=language,
            library_name="transformers",
            license=license,
            metrics=[_METRICS[key][0] for key in shown] or None,
            model_name=name,
            pipeline_tag="question-answering",
            tags=["haystack", "haystack-distill", "knowledge-distillation"],
            eval_results=[_eval_result(key, value, str(dev_data), dev_split) for key, value in shown.items()] or None,
        )
        body = _body(directory, name, teacher, train_data, dev_data, dev_split, metrics, runs, measurements)
        card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}")
    except ValueError as error:
        raise DistilError(f"the hub would not take the card of {directory}: {error}") from error
    write_atomically(directory / CARD_FILE, card.save)
    return directory / CARD_FILE


def push_to_hub(directory: str | Path, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
    """Upload a reader's directory to the hub, in one commit; the repository is made where it is not there.

    `LEFT_AT_HOME` says what is not uploaded: checkpoints, hidden files, and the report's page and JSON, because they
    quote the data. The report's figures are.

    Args:
        directory: A reader's directory.
        repo_id: "owner/name".
        private: Whether the repository is private; None leaves it to the hub's settings, or as it is.
        token: What lets you write there; None takes the one you logged in with.

    Returns:
        The repository's address.

    Raises:
        DistilError: No reader there, a public repository although `private` is true (or the other way round), or the
            hub did not take it.
    """
    directory = expand_user(directory)
    missing = [
        file for file in ("config.json", "model.safetensors", "tokenizer.json") if not (directory / file).is_file()
    ]
    if missing:
        raise DistilError(
            f"{directory} is not a reader's directory: {', '.join(missing)} missing; give one that a run wrote"
        )
    try:
        api = HfApi(token=token)
        address = str(api.create_repo(repo_id, private=private, exist_ok=True))
        is_private = private if private is None else bool(api.model_info(repo_id).private)
        if is_private is private:
            api.upload_folder(
                repo_id=repo_id,
                folder_path=directory,
                commit_message="Upload a reader made with haystack-distill",
                ignore_patterns=list(LEFT_AT_HOME),
            )
    except Exception as error:  # huggingface_hub and whichever HTTP library it stands on raise their own
        reason = str(error).replace(token, "<token>") if token else str(error)
        raise DistilError(
            f"cannot upload {directory} to {repo_id!r} ({type(error).__name__}: {reason}). Check the name and the "
            "connection, and log in with a token that may write there (or give `token`)"
        ) from None  # what it came from might show the token
    if is_private is not private:
        raise DistilError(
            f"{repo_id} is there already and is {'private' if is_private else 'public'}; nothing was uploaded. Change "
            "that in its settings, or leave out `private`"
        )
    return address


def _eval_result(key: str, value: float, dev_data: str, dev_split: str | None) -> EvalResult:
    metric_type, metric_name = _METRICS[key]
    on_hub = hub_name(dev_data)
    return EvalResult(
        task_type="question-answering",
        task_name="Question answering",
        dataset_type=on_hub or "custom",  # not the file's name: it could be that of another data set on the hub
        dataset_name=on_hub or Path(dev_data).name,
        dataset_split=dev_split,
        metric_type=metric_type,
        metric_name=metric_name,
        metric_value=round(float(value), 4),
    )


def _body(
    directory: Path,
    name: str,
    teacher: str | Path | None,
    train_data: Sequence[str | Path],
    dev_data: str | Path | None,
    dev_split: str | None,
    metrics: Mapping[str, float],
    runs: Sequence[Mapping[str, Any]],
    measurements: Sequence[Measurements],
) -> str:
    taught = "" if teacher is None else f", distilled from {_teacher(teacher)}"
    parts = [
        f"# {_plain(name)}",
        f"An extractive question answering reader{taught}; made with haystack-distill.",
        _USE,
        "## How it was made",
    ]
    if train_data:
        parts.append(f"Learnt from {', '.join(_linked(data, 'datasets/') for data in train_data)}.")
    parts += [_run(run) for run in runs]
    if metrics or measurements:
        parts.append("## Results")
    if dev_data is not None and (metrics or measurements):
        split = f", split {_plain(dev_split)}" if dev_split else ""
        parts.append(f"On {_linked(dev_data, 'datasets/')}{split}; exact match and F1 in per cent.")
    if metrics:
        parts.append(_table(["metric", "value"], [[key, _number(value)] for key, value in metrics.items()]))
    if measurements:
        parts.append(_comparison(measurements))
    figure = "report/size-f1.png"
    if (directory / figure).is_file():
        parts.append(f"![Size against F1]({figure})")
    return "\n\n".join([*parts, _LIMITS]) + "\n"


def _run(run: Mapping[str, Any]) -> str:
    """A run's record as a heading and a table: what was done, on how much data, with which settings and versions."""
    data = run.get("data", {})
    rows: list[tuple[str, Any]] = []
    rows += [(name, data[name]) for name in ("examples", "windows") if name in data]
    for group in ("arguments", "windows", "settings"):
        rows += list(run.get(group, {}).items())
    rows += [(name, run[name]) for name in ("precision", "steps") if name in run]
    rows += [(f"version of {name}", value) for name, value in run.get("versions", {}).items()]
    method = str(run.get("method", "run"))
    table = _table(["", ""], [[name, _number(value)] for name, value in rows])
    return f"### {_plain(_METHODS.get(method, method))}\n\n{table}"


def _comparison(measurements: Sequence[Measurements]) -> str:
    rows = [
        [
            one.name,
            f"{one.parameters / 1e6:.1f} M",
            f"{one.metrics['exact']:.1f}",
            f"{one.metrics['f1']:.1f}",
            f"{one.milliseconds:.1f}",
        ]
        for one in measurements
    ]
    devices = ", ".join(sorted({one.device for one in measurements}))
    table = _table(["reader", "parameters", "exact match", "F1", "ms a question"], rows)
    return f"{table}\n\nOne question at a time, the median of {measurements[0].timed_questions} ({_plain(devices)})."


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(header), ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(cell if cell == "---" else _plain(cell) for cell in line) + " |" for line in lines
    )


def _teacher(teacher: str | Path) -> str:
    return "the teacher that comes with the package" if str(teacher) == "embedded" else _linked(teacher, "")


def _linked(name: str | Path, under: str) -> str:
    """A hub name as a link; of a path its last part."""
    found = hub_name(name)
    if found is not None:
        return f"[{found}](https://huggingface.co/{under}{found})"
    return f"`{_plain(Path(str(name)).name).replace('`', '')}`"


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _plain(text: str) -> str:
    """A text on one line without anything that Markdown, a table or HTML would take for its own."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(text.split()))
