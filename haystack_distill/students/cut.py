"""Students cut from a teacher: a subset of its layers, with its embeddings and head."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from haystack_distill.errors import DistilError
from haystack_distill.models.reader import ExampleSource, Reader
from haystack_distill.students.exits import require_no_exits
from haystack_distill.students.importance import Sample, most_important_layers
from haystack_distill.students.layers import AnyModel, keep_layers, require_weights
from haystack_distill.utils.checks import check_argument, is_integer
from haystack_distill.utils.layer_mapping import BLOCK_STARTS, IMPORTANCE, block_starts, last_layers, uniform_layers


def from_teacher(
    teacher: AnyModel,
    layers: int = 3,
    which: str | Sequence[int] = BLOCK_STARTS,
    *,
    data: ExampleSource | None = None,
    importance_sample: int = 100,
    seed: int = 42,
) -> AnyModel:
    """Create a student with a subset of the teacher's layers, and its embeddings and head.

    Args:
        teacher: The reader or language model to cut. It is not changed.
        layers: The number of layers of the student.
        which: The teacher layers that are kept: "block_starts" (evenly spread, always with the first: each layer begins
            with the input that it is used to), "uniform" (evenly spread, always with the last, as TinyBERT, arXiv
            1909.10351, maps them), "first", "last", "importance" (those that are left if the layer that costs least is
            left out, again and again, see `importance.most_important_layers`), or a list of `layers` layer numbers,
            counted from 1, in ascending order. By measurement (docs/methods/measured.md) a student does best without
            the last layers of a reader.
        data: For "importance": questions on which it is measured, labelled or not, as in `students.pruned`.
        importance_sample: For "importance": how many questions are drawn from the data.
        seed: For "importance": the seed of the sample.

    Raises:
        DistilError: `layers` is not between 1 and the number of the teacher's layers, the list is invalid, data are
            missing or have no effect, or the architecture does not allow single layers to be kept.
    """
    require_weights(teacher)
    require_no_exits(teacher, "cut the reader that it was made from, then give that early exits")
    check_layers(teacher, layers, which)
    by_importance = isinstance(which, str) and which == IMPORTANCE
    if by_importance and data is None:
        raise DistilError("the importance of layers is measured on questions; give data, or another which")
    if not by_importance and data is not None:
        raise DistilError("data has no effect unless layers are chosen by importance; set which, or leave data out")
    sample = None
    if by_importance:
        reader = require_reader(teacher, "whose layers are chosen by importance")
        sample = Sample.draw(reader, data, importance_sample, seed)  # type: ignore[arg-type]
    return keep_layers(teacher, layers_to_keep(teacher, layers, which, sample))


def require_reader(teacher: object, purpose: str) -> Reader:
    """The teacher, if it is a reader.

    Raises:
        DistilError: It is not.
    """
    if not isinstance(teacher, Reader):
        raise DistilError(f"a teacher {purpose} must answer questions; give a reader, not a {type(teacher).__name__}")
    return teacher


def layers_to_keep(
    teacher: AnyModel, layers: int, which: str | Sequence[int], sample: Sample | None = None
) -> list[int]:
    """The numbers of the teacher layers that a student keeps, counted from 1; arguments checked by `check_layers`.

    Args:
        teacher: The teacher.
        layers: How many.
        which: As in `from_teacher`.
        sample: For "importance": the questions on which it is measured.
    """
    if isinstance(which, str) and which == IMPORTANCE:
        assert sample is not None
        assert isinstance(teacher, Reader)
        return most_important_layers(teacher, layers, sample)
    return _listed_layers(int(teacher.model.config.num_hidden_layers), layers, which)


def check_layers(teacher: AnyModel, layers: int, which: str | Sequence[int]) -> None:
    """Check the arguments of `from_teacher` that choose layers.

    Raises:
        DistilError: They do not fit the teacher or each other.
    """
    total = int(teacher.model.config.num_hidden_layers)
    if not (is_integer(layers, 1) and layers <= total):
        raise DistilError(
            f"a student cut from a teacher of {total} layers must have 1 to {total} layers, not {layers!r}"
        )
    if not (isinstance(which, str) and which == IMPORTANCE):
        _listed_layers(total, layers, which)


def _listed_layers(total: int, layers: int, which: str | Sequence[int]) -> list[int]:
    if which == BLOCK_STARTS:
        return block_starts(layers, total)
    if which == "uniform":
        return uniform_layers(layers, total)
    if which == "first":
        return list(range(1, layers + 1))
    if which == "last":
        return last_layers(layers, total)
    listed = isinstance(which, Sequence) and not isinstance(which, str)
    check_argument(
        "which",
        which,
        listed and all(map(_is_layer, which)),
        "'block_starts', 'uniform', 'first', 'last', 'importance' or a list of layers",
    )
    kept = [int(layer) for layer in which]
    if len(kept) != layers or kept != sorted(set(kept)) or not all(1 <= layer <= total for layer in kept):
        raise DistilError(
            f"which must name {layers} different layers between 1 and {total} in ascending order, not {kept}"
        )
    return kept


def _is_layer(number: Any) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool)
