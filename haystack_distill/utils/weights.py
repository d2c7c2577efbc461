"""The weights of any module as one safetensors file, and back.

safetensors' own `save_model` refuses modules whose weights are parts of one storage of which none is the whole, as
those of an LSTM are on a GPU.
"""

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn


def save_weights(module: nn.Module, path: Path) -> None:
    """Write the weights of a module; one that has several names is written once.

    Args:
        module: The module.
        path: The file.
    """
    written = set()
    weights = {}
    for name, weight in module.state_dict().items():
        if _place(weight) not in written:
            written.add(_place(weight))
            # What is written must be alone in its storage.
            alone = weight.is_contiguous() and weight.untyped_storage().nbytes() == weight.nbytes
            weights[name] = weight if alone else weight.clone(memory_format=torch.contiguous_format)
    safetensors.torch.save_file(weights, path, metadata={"format": "pt"})


def load_weights(module: nn.Module, path: Path) -> None:
    """Read into a module what `save_weights` wrote of such a one; all its weights must be there, and no others.

    Raises:
        RuntimeError: They are not, or have other shapes.
    """
    weights = safetensors.torch.load_file(path)
    missing, unexpected = module.load_state_dict(weights, strict=False)
    places = {name: _place(weight) for name, weight in module.state_dict().items()}
    there = {places[name] for name in places.keys() & weights.keys()}
    missing = [name for name in missing if places[name] not in there]
    if missing or unexpected:
        raise RuntimeError(f"missing weights {missing}, unexpected weights {unexpected}")


def _place(weight: Tensor) -> tuple[object, ...]:
    """Where a tensor is in memory: the same for the names of one weight."""
    return weight.device, weight.data_ptr(), weight.dtype, weight.shape, weight.stride()
