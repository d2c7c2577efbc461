"""The files of a model directory: their names, and checks before anything is loaded from them."""

import json
import math
import shlex
from pathlib import Path
from typing import Any

from haystack_distill.errors import DistilError

RUN_FILE = "haystack_distill.json"  # the record of a run, beside its model: how it was made and with what result
EXPORT_FOLDER = "onnx"  # in a model directory: exported models (the folder that the Hugging Face hub uses for them)
OPENVINO_FOLDER = "openvino"  # the same for OpenVINO
EXPORT_RECORD = "export.json"  # in either folder: how they were made, how close they are to the model, their metrics
# In a model directory in place of model.safetensors; see `models.trained_weights`.
TRAINED_WEIGHTS = "trained_weights.safetensors"
TRAINED_RECORD = "trained_weights.json"
# In the output directory of a run: a reader for each head that has a name, in a directory of that name.
HEADS_FOLDER = "heads"

_LFS_POINTER = b"version https://git-lfs"


_READ = (".json", ".txt", ".model", ".safetensors")  # suffixes of the files that are read
_FETCH = "it is broken or truncated, download it again"
_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_CONVERT = (
    "import torch, safetensors.torch as s; w = torch.load({source}, weights_only=True); "
    's.save_file({{k: v.clone().contiguous() for k, v in w.items()}}, {target}, {{"format": "pt"}})'
)


def check_model_directory(name: str | Path, *, weights: bool = True) -> None:
    """Check a model's files for common faults before they are read. A hub name passes.

    Args:
        name: A directory or hub name.
        weights: Whether the weights will be read.

    Raises:
        DistilError: A file is missing, not downloaded, truncated or of a format that is never read.
    """
    directory = Path(name)
    if directory.is_file():
        raise DistilError(f"{directory} is a file: give the directory that holds config.json and model.safetensors")
    if not directory.is_dir():
        return
    for file in sorted(directory.iterdir()):
        if file.suffix in _READ and file.is_file() and (weights or file.suffix != ".safetensors"):
            _check_fetched(file)
    if not (directory / "config.json").exists():
        raise DistilError(_without_config(directory))
    for part in ("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        read_json_object(directory, part, _FETCH)
    if weights:
        _check_weights(directory)
    if not any((directory / file).exists() for file in ("tokenizer.json", "vocab.txt", "vocab.json")) and not list(
        directory.glob("*.model")
    ):
        raise DistilError(
            f"{directory} holds no tokenizer (tokenizer.json): copy the tokenizer's files there from the model that it "
            "was made from"
        )


def check_tokenizer_file(name: str | Path) -> None:
    """Check that tokenizer.json of a directory can be read; a directory without it passes.

    Raises:
        DistilError: It cannot be read.
    """
    from tokenizers import Tokenizer, __version__

    file = Path(name) / "tokenizer.json"
    if not file.is_file():
        return
    read_json_object(file.parent, file.name, _FETCH)
    try:
        Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises no narrower class
        raise DistilError(
            f"{file} cannot be read by tokenizers {__version__} ({error}): a newer version wrote it, so upgrade "
            "transformers and tokenizers, or save the model again with these"
        ) from error


def lacks_weights(name: str | Path, prefix: str) -> bool:
    """Whether a directory has safetensors files, but no weight in them whose name begins with `prefix`."""
    from safetensors import safe_open

    files = list(Path(name).glob("*.safetensors"))
    for file in files:
        with safe_open(str(file), framework="numpy") as stream:
            if any(weight.startswith(prefix) for weight in stream.keys()):  # noqa: SIM118 (not a mapping)
                return False
    return bool(files)


def _check_fetched(file: Path) -> None:
    with open(file, "rb") as stream:
        start = stream.read(len(_LFS_POINTER))
    if start == _LFS_POINTER:
        raise DistilError(f"{file} is a Git LFS pointer, not the file itself: run `git lfs pull` in {file.parent}")
    if not start and file.suffix != ".txt":
        raise DistilError(f"{file} is empty: download it again")


def _without_config(directory: Path) -> str:
    if (directory / "language_model_config.json").exists():
        return (
            f"{directory} holds a model in Haystack 1's own format: where haystack-distill[farm] is installed, "
            f"DistilFARMReader({str(directory)!r}).save(NEW_DIRECTORY) converts it"
        )
    if (directory / "adapter_config.json").exists():
        return (
            f"{directory} holds an adapter, not a whole model: merge it into its base model (in peft, "
            "merge_and_unload()) and save that with its tokenizer"
        )
    return f"{directory} holds no config.json: give the directory of a reader"


def weight_files(directory: Path) -> list[Path]:
    """The files that hold the weights of a model directory; none where it has no weights.

    Raises:
        DistilError: The index of a model in several files cannot be read.
    """
    if (directory / TRAINED_RECORD).exists():
        return [directory / TRAINED_WEIGHTS]
    if (directory / _WHOLE).exists():
        return [directory / _WHOLE]
    index = read_json_object(directory, _INDEX) or {}
    return sorted({directory / file for file in index.get("weight_map", {}).values()})


def _check_weights(directory: Path) -> None:
    files = weight_files(directory)
    read_json_object(directory, TRAINED_RECORD, _FETCH)
    missing = [file.name for file in files if not file.exists() and file.name != TRAINED_WEIGHTS]
    if missing:
        raise DistilError(f"{directory} lacks {', '.join(missing)}, which {_INDEX} names: download them again")
    if not files:
        pickled = sorted(directory.glob("*.bin"))
        if pickled:
            code = _CONVERT.format(source=json.dumps(str(pickled[0])), target=json.dumps(str(directory / _WHOLE)))
            raise DistilError(
                f"{directory} holds no weights in safetensors, and {pickled[0].name} is a pickle, which is never read; "
                f"if you trust its source, convert it once: python -c {shlex.quote(code)}"
            )
        raise DistilError(f"{directory} holds no weights in safetensors (model.safetensors): download them")
    for file in files:
        count_parameters(file)


def read_json_object(directory: Path, name: str, remedy: str = "restore it") -> dict[str, Any] | None:
    """The object in a JSON file of a directory, or None if there is no such file.

    Raises:
        DistilError: It cannot be read, is truncated or holds something else; the message ends with `remedy`.
    """
    try:
        content = json.loads((directory / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DistilError(f"{directory / name} cannot be read ({error}): {remedy}") from error
    if not isinstance(content, dict):
        raise DistilError(f"{directory / name} does not hold a JSON object: {remedy}")
    return content


def count_parameters(file: Path) -> int:
    """The number of parameters in a safetensors file, read from its header.

    Raises:
        DistilError: It cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="numpy") as stream:
            names = [name for name in stream.keys() if not name.endswith("position_ids")]  # noqa: SIM118 (not a mapping)
            return sum(math.prod(stream.get_slice(name).get_shape()) for name in names)
    except (SafetensorError, OSError) as error:
        raise DistilError(f"{file} cannot be read ({error}): {_FETCH}") from error
