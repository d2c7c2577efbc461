"""Readers that are saved as the weights that differ from their base, and put together with it on loading.

A directory of such a reader holds the configuration and the tokenizer of any other, and in place of model.safetensors:

    trained_weights.safetensors    the weights that the base lacks or has other values of; where a weight is that of the
                                   base with low-rank updates, only these
    trained_weights.json           where the base is, a hash of the weights that are its own, and the model's adapters
                                   and low-rank updates
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForQuestionAnswering, PreTrainedModel, PreTrainedTokenizerBase

from haystack_distill.errors import DistilError
from haystack_distill.models.adapters import adapter_weights, adapters_of, insert_adapters
from haystack_distill.models.low_rank import (
    LowRankUpdate,
    merge_update,
    remember_updates,
    updates_between,
    updates_of,
)
from haystack_distill.utils.files import expand_user
from haystack_distill.utils.model_files import TRAINED_RECORD, TRAINED_WEIGHTS, check_model_directory, read_json_object
from haystack_distill.utils.model_fingerprint import weights_fingerprint
from haystack_distill.utils.transformers_compat import load_with_tokenizer, load_without_weights, save_model


def save_trained(
    directory: str | Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    base_required: bool,
    replacing: Callable[[], object] | None = None,
) -> Path:
    """Write a reader as the weights that differ from its base: the directory or hub name that it was loaded from.

    Args:
        directory: Where to write.
        model: The reader's model.
        tokenizer: Its tokenizer.
        base_required: Whether the base has to be there; otherwise all weights are written where it is not.
        replacing: Called before the first file is replaced.

    Raises:
        DistilError: The base is required and not there, or is what would be replaced.
    """
    target = expand_user(directory)
    place, revision, theirs = _checked_base(model, target, required=base_required) or (None, None, {})
    own = model.state_dict()
    same = {name for name, weight in theirs.items() if torch.equal(own[name].cpu(), weight)}
    updates = {
        name: found
        for name, remembered in updates_of(model).items()
        if name in theirs.keys() - same and (found := updates_between(theirs[name], own[name].cpu(), remembered))
    }
    changed = {name: own[name] for name in sorted(own.keys() - same - updates.keys())}
    for name, found in updates.items():
        for part, update in zip(_parts(name, len(found)), found, strict=True):
            changed |= {f"{part}.down": update.down, f"{part}.up": update.up}
    beside = None
    if place is not None and os.path.isdir(place) and Path(place).parent.resolve() == target.parent.resolve():
        beside = os.path.relpath(place, target)  # the two may be moved together
    record = {
        "base": place,
        "beside": beside,
        "revision": revision,
        "base_weights": weights_fingerprint({name: theirs[name] for name in same | updates.keys()}),
        "adapters": {name: module.down.out_features for name, module in adapters_of(model).items()},
        "updates": {name: [update.scale for update in found] for name, found in updates.items()},
    }
    written = save_model(target, _TrainedPart(model, changed, record), tokenizer, replacing)
    for file in (*target.glob("model*.safetensors"), target / "model.safetensors.index.json"):
        file.unlink(missing_ok=True)
    return written


def _parts(weight: str, count: int) -> list[str]:
    """The names of the updates of a weight in the file of trained weights."""
    return [f"{weight}.update_{number}" for number in range(1, count + 1)]


class _TrainedPart:
    """What `save_model` writes beside the tokenizer: the configuration, the changed weights and the record."""

    def __init__(self, model: PreTrainedModel, changed: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        self.model = model
        self.forward = model.forward  # tells `save_model` whether the tokenizer makes token types
        self.config = model.config
        self.changed = changed
        self.record = record

    def save_pretrained(self, directory: Path) -> None:
        """Write the files."""
        config = self.model.config
        before = config.architectures
        config.architectures = [type(self.model).__name__]
        try:
            config.save_pretrained(directory)
        finally:
            config.architectures = before
        tensors = {name: weight.detach().cpu().clone().contiguous() for name, weight in self.changed.items()}
        save_file(tensors, directory / TRAINED_WEIGHTS, {"format": "pt"})
        (directory / TRAINED_RECORD).write_text(json.dumps(self.record, indent=2) + "\n", encoding="utf-8")


def remove_trained(directory: Path) -> None:
    """Remove the trained weights from a directory to which a whole model was written."""
    for name in (TRAINED_RECORD, TRAINED_WEIGHTS):
        (directory / name).unlink(missing_ok=True)


def check_base(model: PreTrainedModel, directory: Path | None, *, required: bool) -> None:
    """Check before a run that `save_trained` will be able to write its result.

    Args:
        model: The reader's model.
        directory: Where the result will be written; None: not known yet.
        required: Whether the directory or hub name that the reader was loaded from has to hold such a model.

    Raises:
        DistilError: It does not, or is what would be replaced.
    """
    _checked_base(model, directory, required=required)


def _checked_base(
    model: PreTrainedModel, target: Path | None, *, required: bool
) -> tuple[str, str | None, dict[str, Tensor]] | None:
    """`_base_of`, after the checks of `save_trained`."""
    base = _base_of(model)
    if base is None:
        if required:
            place = model.config.name_or_path
            where = f"it is not in {place}" if place else "it was made in memory"
            raise DistilError(
                f"the trained weights alone need the model that they were trained from, and {where}; save the student "
                "first and load it from there, or set save_only_trained=False"
            )
        return None
    place = base[0]
    if target is not None and target.exists() and os.path.isdir(place) and target.samefile(place):
        raise DistilError(f"{target} holds the base of the reader, which would be replaced; choose another directory")
    return base


def _base_of(model: PreTrainedModel) -> tuple[str, str | None, dict[str, Tensor]] | None:
    """Where the base of a reader is, its commit on the hub, and its weights; None where there is none.

    The base is never itself saved as trained weights: what it was trained from is taken in its place.
    """
    place: str | None = model.config.name_or_path
    revision: str | None = getattr(model.config, "_commit_hash", None)
    if not place:
        return None
    record = read_json_object(Path(place), TRAINED_RECORD)
    if record is not None:
        place, revision = _resolved(Path(place), record), record["revision"]
    if place is None:
        return None
    if os.path.isdir(place):
        place, revision = os.path.abspath(place), None
    try:
        base, _, fresh = load_with_tokenizer(AutoModelForQuestionAnswering, place, "reader", revision=revision)
    except DistilError:
        return None
    weights = base.state_dict()
    own = {name: weight.shape for name, weight in model.state_dict().items()}
    if {name: weight.shape for name, weight in weights.items()} != {
        name: shape for name, shape in own.items() if name not in adapter_weights(model)
    }:
        return None
    return place, revision, {name: weight for name, weight in weights.items() if name not in fresh}


def _resolved(directory: Path, record: Mapping[str, Any]) -> str | None:
    """The base that a record names; a relative path starts at the record's directory."""
    base: str | None = record["base"]
    moved = record.get("beside")
    if moved is not None and (directory / moved).is_dir():
        return str(directory / moved)
    beside = None if base is None else directory / base
    return str(beside) if beside is not None and beside.is_dir() else base


def load_reader_model(name: str, **hub: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """A reader's model, its tokenizer, and the names of weights that its files lack.

    Args:
        name: A directory or hub name. In a directory, only the trained weights may be saved.
        hub: `token` and `revision`, for models on the hub.

    Raises:
        DistilError: As `load_with_tokenizer`; or the base of trained weights is missing, or has other weights.
    """
    directory = Path(name)
    record = read_json_object(directory, TRAINED_RECORD) if directory.is_dir() else None
    if record is None:
        return load_with_tokenizer(AutoModelForQuestionAnswering, name, "reader", **hub)
    check_model_directory(name)
    shape, tokenizer = load_without_weights(AutoModelForQuestionAnswering, name, "reader")
    with torch.random.fork_rng(devices=[]):  # the random weights are replaced
        model = type(shape)._from_config(shape.config).float()
    _insert(model, record)
    trained = load_file(directory / TRAINED_WEIGHTS)
    with _fitting(directory):
        updates = _take_updates(trained, record)
    missing = [weight for weight in model.state_dict() if weight not in trained]
    if missing:
        trained |= _base_weights(directory, record, missing, hub.get("token"))
    with _fitting(directory):
        model.load_state_dict(trained)
        for weight, found in updates.items():
            for update in found:
                merge_update(model.get_submodule(weight.rpartition(".")[0]), update)  # type: ignore[arg-type]
    model.config.name_or_path = model.name_or_path = name
    return model, tokenizer, []


@contextlib.contextmanager
def _fitting(directory: Path) -> Iterator[None]:
    """Report trained weights that do not fit as such."""
    try:
        yield
    except (RuntimeError, KeyError, AttributeError) as error:
        raise DistilError(
            f"{directory / TRAINED_WEIGHTS} does not belong to the {TRAINED_RECORD} and config.json beside it "
            f"({error}): take all three from one run"
        ) from error


def restore_trained(model: PreTrainedModel, directory: Path) -> None:
    """Give a model that has the weights of the base the trained ones of a directory, in place.

    Raises:
        DistilError: There are updates, and the base to which they are added is missing or has other weights.
        RuntimeError: They do not fit.
    """
    record = read_json_object(directory, TRAINED_RECORD) or {}
    _insert(model, record)
    if record.get("updates"):  # added to the base's own weights: those of the model may have them already
        saved, _, _ = load_reader_model(str(directory))
        model.load_state_dict(saved.state_dict())
        remember_updates(model, updates_of(saved))
        return
    trained = load_file(directory / TRAINED_WEIGHTS)
    model.load_state_dict(model.state_dict() | trained)


def _take_updates(trained: dict[str, Tensor], record: Mapping[str, Any]) -> dict[str, list[LowRankUpdate]]:
    """Take the updates of a record from the trained weights, by the names of the updated weights."""
    updates = {}
    for name, scales in record.get("updates", {}).items():
        updates[name] = [
            LowRankUpdate(trained.pop(f"{part}.down"), trained.pop(f"{part}.up"), scale)
            for part, scale in zip(_parts(name, len(scales)), scales, strict=True)
        ]
    return updates


def _insert(model: PreTrainedModel, record: Mapping[str, Any]) -> None:
    """Insert the adapters of a record that the model does not have yet; their weights are new."""
    for name, size in record.get("adapters", {}).items():
        if name not in adapters_of(model):
            insert_adapters(model, [name], size)


def _base_weights(directory: Path, record: Mapping[str, Any], names: list[str], token: str | None) -> dict[str, Tensor]:
    """The weights that a reader has of its base, checked."""
    place = _resolved(directory, record)
    remedy = f'put it back there, or change "base" in {directory / TRAINED_RECORD}'
    if place is None:
        raise DistilError(f"{directory / TRAINED_WEIGHTS} lacks {', '.join(names)}: take it from the original run")
    try:
        base, _, _ = load_with_tokenizer(
            AutoModelForQuestionAnswering, place, "reader", token=token, revision=record["revision"]
        )
    except DistilError as error:
        raise DistilError(
            f"{directory} holds only the weights that were trained, and their base cannot be loaded ({error}); {remedy}"
        ) from error
    weights = base.state_dict()
    found = {name: weights[name] for name in names if name in weights}
    if len(found) < len(names) or weights_fingerprint(found) != record["base_weights"]:
        raise DistilError(
            f"{directory} holds only the weights that were trained, and {place} has other weights than their base had; "
            f"{remedy}"
        )
    return found
