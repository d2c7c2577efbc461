"""What can be read off a reader's files, without loading it."""

import json
import math
from pathlib import Path
from typing import Any

from haystack_distill.errors import DistilError
from haystack_distill.files import EXPORT_FOLDER, EXPORT_RECORD, RUN_FILE

# Configuration values worth showing: BERT's names and DistilBERT's.
_SHAPE = (
    *("num_hidden_layers", "n_layers", "hidden_size", "dim", "num_attention_heads", "n_heads"),
    *("intermediate_size", "hidden_dim", "max_position_embeddings", "vocab_size"),
)


def describe(directory: Path) -> dict[str, Any]:
    """What can be read off a reader's files, without loading it.

    Raises:
        DistilError: It is not a directory with a model in safetensors and its configuration.
    """
    config = json_in(directory, "config.json")
    if config is None:
        raise DistilError(f"{directory} holds no config.json: give the directory of a reader")
    weights = sorted(directory.glob("*.safetensors"))
    if not weights:
        raise DistilError(f"{directory} holds no weights in safetensors")
    tokenizer = json_in(directory, "tokenizer_config.json") or {}
    return {
        "directory": directory,
        "architecture": next(iter(config.get("architectures") or []), None),
        "model_type": config.get("model_type"),
        "shape": {name: config[name] for name in _SHAPE if name in config},
        "parameters": sum(_count_parameters(file) for file in weights),
        "weights_megabytes": sum(file.stat().st_size for file in weights) / 1e6,
        "directory_megabytes": sum(file.stat().st_size for file in directory.rglob("*") if file.is_file()) / 1e6,
        "tokenizer": tokenizer.get("tokenizer_class"),
        "fast_tokenizer": (directory / "tokenizer.json").exists(),
        "unfinished_run": (directory / "checkpoints" / "run.json").exists(),
        "exported": (json_in(directory, f"{EXPORT_FOLDER}/{EXPORT_RECORD}") or {}).get("backends"),
        "run": json_in(directory, RUN_FILE),
    }


def json_in(directory: Path, name: str, remedy: str = "restore it") -> dict[str, Any] | None:
    """The object in a JSON file of a directory, None where there is no such file.

    Raises:
        DistilError: It cannot be read, was cut off or holds something else; the message ends with `remedy`.
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


def _count_parameters(file: Path) -> int:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="numpy") as stream:
            names = [name for name in stream.keys() if not name.endswith("position_ids")]  # noqa: SIM118 (not a mapping)
            return sum(math.prod(stream.get_slice(name).get_shape()) for name in names)
    except (SafetensorError, OSError) as error:
        raise DistilError(f"{file} cannot be read: {error}") from error
