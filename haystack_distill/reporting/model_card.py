"""The model card of a reader, a README.md with front matter for the Hugging Face hub, and uploading to the hub."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from haystack_distill.data.squad.tables import FILE_ENDINGS
from haystack_distill.errors import DistilError
from haystack_distill.evaluation.measurements import Measurements
from haystack_distill.models.bilstm_config import MODEL_TYPE
from haystack_distill.reporting.licences import require_language, require_licence
from haystack_distill.training.methods import METHODS
from haystack_distill.training.run_record import head_names
from haystack_distill.utils.atomic import write_atomically
from haystack_distill.utils.families import EARLY_EXIT, shape_of
from haystack_distill.utils.files import expand_user
from haystack_distill.utils.model_files import HEADS_FOLDER, TRAINED_RECORD, read_json_object

CARD_FILE = "README.md"

# Hidden and temporary files, checkpoints with optimiser states, TensorBoard logs (their names contain the host name),
# and reports, which quote data that may be private; also in folders.
_PRIVATE = (
    ".*",
    "checkpoints/*",
    "tensorboard/*",
    "training_args.bin",
    "report.html",
    "report.json",
    "agreement.html",
    "agreement.json",
)
NOT_UPLOADED = ("*.tmp", *_PRIVATE, *(f"*/{name}" for name in _PRIVATE))

_ANY_TOOL = "Any tool that loads question answering models from the Hugging Face hub runs it. With haystack-distill:"
_EARLY_EXIT = (
    "It has early exits, an architecture of haystack-distill: transformers loads it once `haystack_distill` is "
    "imported. With a `speed` from 0 to 1 it answers by the first layer that is certain enough:"
)
_USE = """It finds the answer to a question in a text that it is given, as a part of that text.

## How to use it

{tools}

```python
from haystack_distill import Reader

reader = Reader.load("<this directory, or its name on the hub>")
print(reader.answer("Who wrote it?", "Ada Lovelace wrote it in 1843.")[0].text)
```"""
_BILSTM = """It is a BiLSTM reader, an architecture of haystack-distill: `import haystack_distill` registers it with the
auto classes of transformers. In Haystack the `DistilledReader` of haystack-distill runs it; `FARMReader` of
farm-haystack and other tools that load models without haystack-distill do not. With haystack-distill:"""
_TRAINED = """This directory holds only the weights that were trained{base}. haystack-distill loads it and takes the
others from there; other tools cannot load it. With haystack-distill:"""
_LIMITS = """## Limits

- It answers with words of the text it is given. Where the text is wrong, so is the answer, and where the text does not
  hold the answer, it may give one all the same.
- Its score is not a promise: how often an answer of a given score is right depends on the data.
- On texts and questions unlike those it was measured on, expect less; measure it on your own.
- What its teacher and its data got wrong, biases included, it may have learnt. Their licences may bind it."""
_METRICS = {"exact": ("exact_match", "Exact match"), "f1": ("f1", "F1")}


def hub_name(name: str | Path) -> str | None:
    """`name` if it can only be a name on the hub; None for files, directories and the embedded teacher."""
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
    """Write a reader's model card to `README.md` in its directory, replacing any existing card.

    Teacher and data are in the front matter (`base_model`, `datasets`) if they are names on the hub. Of local paths the
    card has only the last part.

    Args:
        directory: The reader's directory, whose name is the name of the model.
        metrics: SQuAD metrics of the reader on `dev_data`, in per cent; may be empty.
        teacher: The teacher: a hub name, a directory or "embedded".
        train_data: The training data: hub names or files.
        dev_data: The evaluation data: a hub name or a file.
        dev_split: The split of `dev_data`, if it is on the hub.
        runs: The records of the runs that trained the reader, in order, as in `utils.model_files.RUN_FILE`.
        measurements: The reader and those to compare it with, for the table of results.
        license: The identifier of a licence on the hub, such as "apache-2.0". None leaves it out.
        language: A language code, such as "en".

    Returns:
        The path of the card.

    Raises:
        DistilError: There is no such directory, metrics come without `dev_data`, or the hub would reject the card.
    """
    directory = expand_user(directory)
    if not directory.is_dir():
        raise DistilError(f"{directory} does not exist: save the reader there first")
    if metrics and dev_data is None:
        raise DistilError("metrics need the data that they were measured on: give dev_data too")
    require_licence(license)
    require_language(language)
    name = directory.resolve().name
    hub_data = [found for found in map(hub_name, train_data) if found is not None]
    published = {key: value for key, value in metrics.items() if key in _METRICS}
    try:
        data = ModelCardData(
            base_model=None if teacher is None else hub_name(teacher),
            datasets=list(dict.fromkeys(hub_data)) or None,
            language=language,
            library_name="transformers",
            license=license,
            metrics=[_METRICS[key][0] for key in published] or None,
            model_name=name,
            pipeline_tag="question-answering",
            tags=["haystack", "haystack-distill", "knowledge-distillation"],
            eval_results=[_eval_result(key, value, str(dev_data), dev_split) for key, value in published.items()]
            or None,
        )
        body = _body(directory, name, teacher, train_data, dev_data, dev_split, metrics, runs, measurements)
        card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}")
    except ValueError as error:
        raise DistilError(f"the hub would reject the card of {directory} ({error}): correct its entries") from error
    write_atomically(directory / CARD_FILE, card.save)
    return directory / CARD_FILE


def push_to_hub(directory: str | Path, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
    """Upload a reader's directory to the hub in one commit; the repository is created if necessary.

    Files that match `NOT_UPLOADED` are left out: checkpoints, hidden files, and the page and JSON of the report, which
    quote the data. The figures of the report are uploaded.

    Args:
        directory: The reader's directory.
        repo_id: The repository, "owner/name".
        private: Whether the repository has to be private; None uses the default of the hub, or leaves it as it is.
        token: An access token of the hub; None uses the one of the login.

    Returns:
        The repository's address.

    Raises:
        DistilError: There is no reader, the repository is public although `private` is true (or the other way round),
            or the upload failed.
    """
    directory = expand_user(directory)
    if (directory / TRAINED_RECORD).exists():
        raise DistilError(
            f"{directory} holds only the weights that were trained, and a reader on the hub needs all of them: train "
            "with another adaptation than adapters, such as lora, and without save_only_trained"
        )
    missing = [
        file for file in ("config.json", "model.safetensors", "tokenizer.json") if not (directory / file).is_file()
    ]
    if missing:
        raise DistilError(
            f"{directory} is not the directory of a reader ({', '.join(missing)} missing): give one that a run wrote"
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
                ignore_patterns=list(NOT_UPLOADED),
            )
    except Exception as error:  # huggingface_hub and its HTTP library have no common class
        reason = str(error).replace(token, "<token>") if token else str(error)
        raise DistilError(
            f"cannot upload {directory} to {repo_id!r} ({type(error).__name__}: {reason}): check the name and the "
            "connection, and log in with a token that has write access (or give `token`)"
        ) from None  # the cause may contain the token
    if is_private is not private:
        raise DistilError(
            f"{repo_id} exists and is {'private' if is_private else 'public'}, so nothing was uploaded: change that in "
            "its settings, or leave out `private`"
        )
    return address


def _eval_result(key: str, value: float, dev_data: str, dev_split: str | None) -> EvalResult:
    metric_type, metric_name = _METRICS[key]
    on_hub = hub_name(dev_data)
    return EvalResult(
        task_type="question-answering",
        task_name="Question answering",
        dataset_type=on_hub or "custom",  # not the file name, which may be the name of another dataset on the hub
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
    origin = "" if teacher is None else f", distilled from {_teacher(teacher)}"
    parts = [
        f"# {_escaped(name)}",
        f"An extractive question answering reader{origin}; made with haystack-distill.",
        _USE.format(tools=_tools_for(directory)),
    ]
    heads = [head for head in (head_names(runs[-1]) if runs else []) if (directory / HEADS_FOLDER / head).is_dir()]
    if heads:
        listed = ", ".join(f"`{HEADS_FOLDER}/{head}`" for head in heads)
        parts.append(
            f"Sources of its data have heads of their own on its encoder. Each is a complete reader: {listed}."
        )
    parts.append("## How it was made")
    shape = shape_of(read_json_object(directory, "config.json") or {})
    if shape:
        parts.append(f"Its shape: {_escaped(shape)}.")
    if train_data:
        parts.append(f"Learnt from {', '.join(_linked(data, 'datasets/') for data in train_data)}.")
    parts += [_run(run) for run in runs]
    if metrics or measurements:
        parts.append("## Results")
    if dev_data is not None and (metrics or measurements):
        split = f", split {_escaped(dev_split)}" if dev_split else ""
        parts.append(f"On {_linked(dev_data, 'datasets/')}{split}; exact match and F1 in per cent.")
    if metrics:
        parts.append(_table(["metric", "value"], [[key, _number(value)] for key, value in metrics.items()]))
    if measurements:
        parts.append(_comparison(measurements))
    figure = "report/size-f1.png"
    if (directory / figure).is_file():
        parts.append(f"![Size against F1]({figure})")
    return "\n\n".join([*parts, _LIMITS]) + "\n"


def _tools_for(directory: Path) -> str:
    """What runs the reader, by its files and its architecture."""
    trained = read_json_object(directory, TRAINED_RECORD)
    if trained is not None:
        base = f", and needs its base, {_linked(trained['base'], '')}" if trained.get("base") else ""
        return _TRAINED.format(base=base)
    model_type = str((read_json_object(directory, "config.json") or {}).get("model_type"))
    if model_type == MODEL_TYPE:
        return _BILSTM
    return _EARLY_EXIT if model_type.startswith(EARLY_EXIT) else _ANY_TOOL


def _run(run: Mapping[str, Any]) -> str:
    """The record of a run as a heading and a table: method, amount of data, settings and versions."""
    data = run.get("data", {})
    rows: list[tuple[str, Any]] = []
    rows += [(name, data[name]) for name in ("examples", "windows") if name in data]
    if head_names(run):
        rows.append(("heads of the sources", ", ".join(name or "(shared)" for name in run["sources"]["heads"])))
    rows += _method_rows(run)
    adaptation = dict(run.get("adaptation", {}))
    if adaptation:
        name = adaptation.pop("name")
        rows += [("adaptation", name), *((f"{name}: {option}", value) for option, value in adaptation.items())]
    for group in ("windows", "settings"):
        rows += list(run.get(group, {}).items())
    rows += [(name, run[name]) for name in ("precision", "steps") if name in run]
    rows += [(f"version of {name}", value) for name, value in run.get("versions", {}).items()]
    table = _table(["", ""], [[name, _number(value)] for name, value in rows])
    return f"### {_escaped(_title(run))}\n\n{table}"


def _title(run: Mapping[str, Any]) -> str:
    """The names of a run's methods, from the registry; a method that is not registered has its class's name."""
    parts = run.get("arguments", {}).get("parts", [run])
    names = [str(part.get("method", "run")) for part in parts]
    return " + ".join(METHODS.title(name).partition(":")[0] if name in METHODS else name for name in names)


def _method_rows(run: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The options of a run's method; of a sum, each method's weight and options."""
    arguments = run.get("arguments", {})
    if "parts" not in arguments:
        return list(arguments.items())
    rows: list[tuple[str, Any]] = []
    for part in arguments["parts"]:
        rows.append((f"weight of {part['method']}", part["weight"]))
        if "final_weight" in part:
            rows.append((f"final weight of {part['method']}", part["final_weight"]))
        rows += [(f"{part['method']}: {option}", value) for option, value in part["arguments"].items()]
    return rows


def _comparison(measurements: Sequence[Measurements]) -> str:
    rows = [
        [
            one.name,
            one.shape,
            f"{one.parameters / 1e6:.1f} M",
            f"{one.metrics['exact']:.1f}",
            f"{one.metrics['f1']:.1f}",
            f"{one.milliseconds:.1f}",
        ]
        for one in measurements
    ]
    devices = ", ".join(sorted({one.device for one in measurements}))
    table = _table(["reader", "shape", "parameters", "exact match", "F1", "ms per question"], rows)
    return f"{table}\n\nOne question at a time, the median of {measurements[0].timed_questions} ({_escaped(devices)})."


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(header), ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(cell if cell == "---" else _escaped(cell) for cell in line) + " |" for line in lines
    )


def _teacher(teacher: str | Path) -> str:
    return "the teacher that comes with the package" if str(teacher) == "embedded" else _linked(teacher, "")


def _linked(name: str | Path, under: str) -> str:
    """A hub name as a link, or the last part of a path."""
    found = hub_name(name)
    if found is not None:
        return f"[{found}](https://huggingface.co/{under}{found})"
    return f"`{_escaped(Path(str(name)).name).replace('`', '')}`"


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _escaped(text: str) -> str:
    """A text on one line, with the special characters of Markdown, tables and HTML escaped."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(text.split()))
