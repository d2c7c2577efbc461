"""What runs a reader in place of its PyTorch model: the backends by name, and their files in a reader directory.

Each runtime has a module of its own beside this one, and a folder of its own in the directory. A reader knows neither:
it calls what `open_exported` returns.
"""

import contextlib
import json
import logging
import os
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from haystack_distill.errors import DistilError
from haystack_distill.utils.hashing import hash_file, hash_json
from haystack_distill.utils.model_files import (
    EXPORT_FOLDER,
    EXPORT_RECORD,
    OPENVINO_FOLDER,
    read_json_object,
    weight_files,
)
from haystack_distill.utils.processor import adds_in_32_bits

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# The files of each backend; the first is what its runtime opens. The names are those that optimum-intel looks for.
FILES = {
    "onnx": (f"{EXPORT_FOLDER}/model.onnx",),
    "onnx-int8": (f"{EXPORT_FOLDER}/model_int8.onnx",),
    "openvino": (f"{OPENVINO_FOLDER}/openvino_model.xml", f"{OPENVINO_FOLDER}/openvino_model.bin"),
    "openvino-int8": (f"{OPENVINO_FOLDER}/openvino_model_int8.xml", f"{OPENVINO_FOLDER}/openvino_model_int8.bin"),
}
BACKENDS = ("torch", *FILES, "auto")
INT8_BACKENDS = ("onnx-int8", "openvino-int8")


class ExportedModel(Protocol):
    """A question answering model outside PyTorch, on the processor. Any number of threads may call it at once.

    Attributes:
        backend: The name of the backend.
        path: The file that it was opened from.
        precision: The number format that it computes in, int8 layers aside: "fp32" or "bf16".
        length_multiple: The multiple of tokens to which batches are padded because that is faster.
    """

    backend: str
    path: Path
    precision: str
    length_multiple: int

    def __call__(self, inputs: "dict[str, torch.Tensor]") -> "tuple[torch.Tensor, torch.Tensor]":
        """Start and end logits (B, L), float32, of a batch of `utils.model_inputs.model_inputs`.

        The logits of padding are anything.
        """
        ...


def check_backend(backend: str) -> None:
    """Raise a DistilError unless there is such a backend."""
    if backend not in BACKENDS:
        raise DistilError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")


def runtime_of(backend: str) -> str:
    """The runtime of a backend, which is the folder of its files too: "onnx" or "openvino"."""
    return backend.partition("-")[0]


def open_exported(
    path: Path,
    backend: str,
    *,
    num_threads: int | None = None,
    precision: str = "auto",
    model_type: str | None = None,
) -> ExportedModel:
    """The model in an exported file, ready to be called.

    Args:
        path: The first of the backend's `FILES`.
        backend: A backend other than "torch".
        num_threads: Processor threads of one call; None: one for each core that the process may use.
        precision: "auto", "fp32" or "bf16", for a runtime that chooses the number format as it opens the file
            (OpenVINO); see `utils.devices.resolve_precision`.
        model_type: The model's `config.model_type`.

    Raises:
        DistilError: The runtime is not installed, or cannot read the file.
    """
    if backend.startswith("openvino"):
        from haystack_distill.models.backends.openvino_runtime import OpenVinoModel

        return OpenVinoModel(path, backend, num_threads, precision=precision, model_type=model_type)
    from haystack_distill.models.backends.onnx_runtime import OnnxModel

    return OnnxModel(path, backend, num_threads)


def find_exported(name: str, backend: str, **hub: Any) -> Path:
    """The file that a backend opens, of a reader directory or of a model on the hub (`hub`: `token`, `revision`).

    Raises:
        DistilError: There is none, or the weights of the directory are no longer those that it was made from.
    """
    from transformers.utils import cached_file

    try:
        found = [cached_file(name, file, **hub) for file in FILES[backend]]
    except (OSError, ValueError) as error:
        raise DistilError(
            f"{name!r} has no {FILES[backend][0]}, which backend {backend!r} runs: make it with `haystack-distill "
            f"export{' --runtime openvino' if backend.startswith('openvino') else ''}` ({error})"
        ) from error
    require_same_weights(name, backend)
    if backend in INT8_BACKENDS and overflows_here(export_record(name, runtime_of(backend), **hub), backend):
        logger.warning(
            "%s has weights of 8 bits, whose sums overflow on this processor (no VNNI), so its answers may be others "
            "than where it was measured: export %s here, or without --no-reduce-range",
            *(FILES[backend][0], name),
        )
    return Path(str(found[0]))


def export_record(name: str, runtime: str, **hub: Any) -> dict[str, Any]:
    """The content of a runtime's `export.json`, of a directory or hub name; empty where none can be read."""
    from transformers.utils import cached_file

    try:
        content = json.loads(
            Path(str(cached_file(name, f"{runtime}/{EXPORT_RECORD}", **hub))).read_text(encoding="utf-8")
        )
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and isinstance(content.get("backends"), dict) else {}


def is_dynamic(record: Mapping[str, Any], backend: str) -> bool:
    """Whether the record of an export holds that a backend scales activations in every call."""
    return backend in INT8_BACKENDS and _recipe(record, backend).startswith("dynamic")


def overflows_here(record: Mapping[str, Any], backend: str) -> bool:
    """Whether an exported int8 model computes something else on this processor than where it was made.

    Weights of all 8 bits, multiplied by activations of 8 bits, need a processor that adds the products in 32 bits.
    """
    if backend not in INT8_BACKENDS or backend not in record.get("backends", {}) or adds_in_32_bits():
        return False
    bits = record["backends"][backend].get("weight_bits")
    if bits is None and "processor" not in record:  # of an earlier version, which left the number out
        if runtime_of(backend) == "openvino":
            return not is_dynamic(record, backend)
        return "8 bits" in _recipe(record, backend) or record.get("settings", {}).get("reduce_range") is False
    return bits == 8


def _recipe(record: Mapping[str, Any], backend: str) -> str:
    kept = [one["name"] for one in record.get("tried", ()) if one["backend"] == backend and one["kept"]]
    return str(kept[0] if kept else record.get("settings", {}).get("int8"))


def exported_hash(exported: ExportedModel) -> str:
    """SHA-256 (hex) of the backend of an exported model and of the files that it was opened from."""
    return hash_json(exported.backend, [_present_hash(file) for file in files_of(exported)])


def files_of(exported: ExportedModel) -> list[Path]:
    """The files that an exported model was opened from."""
    return [exported.path.with_name(Path(name).name) for name in FILES[exported.backend]]


def weight_hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of each file with weights of a reader directory, as the record of an export holds them."""
    return {file.name: _present_hash(file) for file in weight_files(directory) if file.exists()}


def _present_hash(file: Path) -> str:
    found = file.stat()
    return _hash_of(file, found.st_size, found.st_mtime_ns)


@cache
def _hash_of(file: Path, size: int, modified: int) -> str:
    """The hash of a file as it is now: "auto" asks for that of the same weights once for each backend and loading."""
    return hash_file(file)


def require_same_weights(name: str, backend: str) -> None:
    """Check that a directory's weights are those that were exported; other tools replace them and leave the exports.

    A directory that holds the exports alone passes, and one whose exports were recorded without their weights.

    Raises:
        DistilError: They are others.
    """
    file = Path(name) / FILES[backend][0]
    record = read_json_object(file.parent, EXPORT_RECORD, "export the reader again") or {}
    exported, there = record.get("weights"), weight_hashes(Path(name)) if "weights" in record else {}
    if there and there != exported:
        raise DistilError(
            f"the weights in {name} are no longer those that {file} was made from: export the reader again"
        )


def require_same_process(started: int) -> None:
    """Check that a runtime is called in the process that started its threads, which a forked one lacks.

    Args:
        started: `os.getpid()` of that process.

    Raises:
        DistilError: It is another.
    """
    if os.getpid() != started:
        raise DistilError(
            "the reader was loaded before this process was forked, and its threads stayed behind: load it in each "
            "process, or start processes by 'spawn'"
        )


def remove_exported(directory: Path, runtimes: Collection[str] = (EXPORT_FOLDER, OPENVINO_FOLDER)) -> None:
    """Remove what was exported from the weights of a reader directory, before they or the exports are replaced.

    What others put into folders of those names stays.

    Args:
        directory: The reader's.
        runtimes: Those whose exports go.
    """
    for folder in (directory / runtime for runtime in runtimes):
        ours = (folder / EXPORT_RECORD).exists()
        for file in (directory / name for files in FILES.values() for name in files):
            if file.parent != folder or not file.exists():
                continue
            if ours:
                file.unlink()
            else:
                logger.warning("%s was not exported by this package and stays, but the weights change", file)
        if ours:
            (folder / EXPORT_RECORD).unlink()
            with contextlib.suppress(OSError):  # something else is in there
                folder.rmdir()
