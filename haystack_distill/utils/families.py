"""Families of encoders: the architecture of a model, whichever of this package's readers is built on it."""

from typing import Any

EARLY_EXIT = "early_exit_"  # what `model_type` of a reader with early exits begins with


def family_of(config: Any) -> str:
    """The model type of an encoder, such as "bert", also where the reader has early exits ("early_exit_bert").

    Args:
        config: A transformers configuration.
    """
    return str(config.model_type).removeprefix(EARLY_EXIT)
