"""Inspection of a reader's files, without loading the model."""

from pathlib import Path
from typing import Any

from haystack_distill.errors import DistilError
from haystack_distill.models.backends.exported import runtime_of
from haystack_distill.utils.families import SHAPE_NAMES
from haystack_distill.utils.files import expand_user
from haystack_distill.utils.model_files import (
    EXPORT_FOLDER,
    EXPORT_RECORD,
    OPENVINO_FOLDER,
    RUN_FILE,
    TRAINED_RECORD,
    check_model_directory,
    count_parameters,
    read_json_object,
    weight_files,
)

_SHAPE = (*(name for names in SHAPE_NAMES.values() for name in names), "max_position_embeddings", "vocab_size")


def describe(directory: Path) -> dict[str, Any]:
    """Describe a reader from its files, without loading the model.

    Raises:
        DistilError: It is not a directory with a model in safetensors and its configuration.
    """
    directory = expand_user(directory)
    if not directory.is_dir():
        raise DistilError(f"{directory} holds no config.json: give the directory of a reader")
    check_model_directory(directory)
    config = read_json_object(directory, "config.json") or {}
    weights = [file for file in weight_files(directory) if file.exists()]
    tokenizer = read_json_object(directory, "tokenizer_config.json") or {}
    trained = read_json_object(directory, TRAINED_RECORD)
    return {
        "directory": directory,
        "architecture": next(iter(config.get("architectures") or []), None),
        "model_type": config.get("model_type"),
        "shape": {name: config[name] for name in _SHAPE if name in config},
        "parameters": sum(count_parameters(file) for file in weights),
        # Where these are the trained weights alone: the model that the others are taken from.
        "base": None if trained is None else trained.get("base"),
        "weights_megabytes": sum(file.stat().st_size for file in weights) / 1e6,
        "directory_megabytes": sum(file.stat().st_size for file in directory.rglob("*") if file.is_file()) / 1e6,
        "tokenizer": tokenizer.get("tokenizer_class"),
        "fast_tokenizer": (directory / "tokenizer.json").exists(),
        "unfinished_run": (directory / "checkpoints" / "run.json").exists(),
        "exported": _exported(directory),
        "calibration": config.get("calibration"),
        "run": read_json_object(directory, RUN_FILE),
    }


def _exported(directory: Path) -> dict[str, Any] | None:
    """What the records of a directory's exports hold on each backend; None without exports."""
    found = {}
    for folder in (EXPORT_FOLDER, OPENVINO_FOLDER):
        record = read_json_object(directory, f"{folder}/{EXPORT_RECORD}")
        # The record of a runtime holds those of the same run too, which may have been exported anew since.
        for name, entry in ((record or {}).get("backends") or {}).items():
            if runtime_of(name) == folder or (name == "torch" and (name not in found or "metrics" in entry)):
                found[name] = entry
    return found or None
