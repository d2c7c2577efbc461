"""Families of encoders: the architecture of a model, whichever of this package's readers is built on it."""

from collections.abc import Mapping
from typing import Any

EARLY_EXIT = "early_exit_"  # what `model_type` of a reader with early exits begins with


def family_of(config: Any) -> str:
    """The model type of an encoder, such as "bert", also where the reader has early exits ("early_exit_bert").

    Args:
        config: A transformers configuration.
    """
    return str(config.model_type).removeprefix(EARLY_EXIT)


SHAPE_NAMES = {  # a value of a configuration: its names in BERT's, DistilBERT's and a BiLSTM reader's
    "layers": ("num_hidden_layers", "n_layers"),
    "width": ("hidden_size", "dim"),
    "heads": ("num_attention_heads", "n_heads"),
    "neurons": ("intermediate_size", "hidden_dim"),
    "units": ("units",),
}


def shape_of(config: Mapping[str, Any]) -> str:
    """The shape of a model in words, such as "bert, 5 layers of width 384, 12 attention heads, 384 neurons".

    Args:
        config: What `config.json` of the model holds; values that it lacks are left out.
    """
    kind = str(config.get("model_type", ""))
    found = {
        what: next((config[name] for name in names if config.get(name) is not None), None)
        for what, names in SHAPE_NAMES.items()
    }
    parts = [kind.removeprefix(EARLY_EXIT)]
    if found["layers"] is not None:
        width = "" if found["width"] is None else f" of width {found['width']:,}"
        parts.append(f"{found['layers']} {'layer' if found['layers'] == 1 else 'layers'}{width}")
    if found["units"] is not None:
        parts.append(f"{found['units']:,} units a direction")
    else:
        parts += [f"{found['heads']} attention heads"] if found["heads"] is not None else []
        parts += [f"{found['neurons']:,} neurons"] if found["neurons"] is not None else []
    if config.get("vocab_size") is not None:
        parts.append(f"a vocabulary of {config['vocab_size']:,}")
    parts += ["early exits"] if kind.startswith(EARLY_EXIT) else []
    return ", ".join(part for part in parts if part)
