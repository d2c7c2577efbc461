"""How examples are cut into windows; this module does not import torch."""

from dataclasses import asdict, dataclass

from haystack_distill.errors import DistilError


@dataclass(frozen=True)
class WindowSettings:
    """How an example is cut into windows.

    Args:
        max_seq_len: Tokens a window holds at most, special tokens and question included.
        doc_stride: Context tokens between the starts of two neighbouring windows, as in BERT's and FARM's readers
            (not their overlap, which Hugging Face calls `stride`). By default a third of `max_seq_len`.
        max_query_length: Question tokens kept at most; a longer question loses its end.
    """

    max_seq_len: int = 384
    doc_stride: int = None  # type: ignore[assignment]  # a number as soon as the settings are made
    max_query_length: int = 64

    def __post_init__(self) -> None:
        if self.doc_stride is None and isinstance(self.max_seq_len, int):
            object.__setattr__(self, "doc_stride", default_stride(self.max_seq_len))
        for name, value in asdict(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise DistilError(f"{name} must be a whole number of at least 1, not {value!r}")
        if self.max_query_length >= self.max_seq_len - 4:
            raise DistilError(
                f"max_query_length {self.max_query_length} leaves no room for the context in max_seq_len "
                f"{self.max_seq_len}; lower the one or raise the other"
            )


def default_stride(max_seq_len: int) -> int:
    """The default `doc_stride`: a third of the length of a window, as BERT's 128 of 384."""
    return max(1, max_seq_len // 3)
