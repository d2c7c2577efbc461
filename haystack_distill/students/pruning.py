"""Pruned students: the least important layers, attention heads and feed-forward neurons of a teacher are left out."""

from collections.abc import Sequence

import torch
from torch import Tensor

from haystack_distill.errors import DistilError
from haystack_distill.models.reader import ExampleSource, Reader
from haystack_distill.students.cut import check_layers, layers_to_keep, require_reader
from haystack_distill.students.exits import require_no_exits
from haystack_distill.students.importance import Sample, importance_of
from haystack_distill.students.layers import keep_layers, require_weights
from haystack_distill.students.parts import Parts, feed_forward_size, keep_parts, neurons_of, require_free_heads
from haystack_distill.utils.checks import check_argument, is_integer
from haystack_distill.utils.layer_mapping import IMPORTANCE

WIDE = 768  # hidden states of a base-size reader; from here on, what measured best is another than for narrower ones


def pruned(
    teacher: Reader,
    data: ExampleSource,
    *,
    layers: int | None = None,
    which: str | Sequence[int] = "importance",
    heads: int | None = None,
    intermediate_size: int | None = None,
    importance_sample: int = 100,
    seed: int = 42,
) -> Reader:
    """Create a student without the teacher's least important layers, attention heads and feed-forward neurons.

    The parts that remain keep their weights, and each layer has equally many, so the student is an ordinary model of
    the teacher's architecture and hidden size. Importance is measured on questions, see `importance.importance_of`
    (Michel et al. 2019, arXiv 1905.10650) and `importance.most_important_layers`: by their labels, or by the teacher's
    answers where they have none. Layers go first; heads and neurons are then measured without them.

    Args:
        teacher: The reader to prune. It is not changed.
        data: Questions like those that the student will answer, labelled or not: SQuAD files, a data set or a name on
            the hub.
        layers: The number of layers that remain; None for all.
        which: Which layers remain, as in `students.from_teacher`.
        heads: The number of attention heads of each layer that remain; None for all. Most architectures have no model
            with fewer heads of the same size (docs/students.md): for these it is an error.
        intermediate_size: The number of neurons of each feed-forward layer that remain; None for all.
        importance_sample: How many questions are drawn from the data to measure importance on, 100 by default.
        seed: The seed of the sample.

    Raises:
        DistilError: Nothing is left out, a number is not below the teacher's, or the architecture cannot do with fewer.

    Example:
        >>> from haystack_distill.data.sample import sample_path
        >>> from haystack_distill.models.embedded_teacher import embedded_teacher
        >>> student = pruned(embedded_teacher(), sample_path("train"), intermediate_size=64, importance_sample=8)
        >>> student.model.config.intermediate_size
        64
    """
    require_weights(require_reader(teacher, "that is pruned"))
    require_no_exits(teacher, "prune the reader that it was made from, then give that early exits")
    if layers is None and heads is None and intermediate_size is None:
        raise DistilError("nothing is pruned; give layers, heads or intermediate_size")
    if layers is not None:
        check_layers(teacher, layers, which)
        if layers == teacher.model.config.num_hidden_layers and heads is None and intermediate_size is None:
            raise DistilError(
                f"nothing is pruned, as the teacher has {layers} layers; give fewer, heads or intermediate_size"
            )
    elif which != IMPORTANCE:
        raise DistilError("which chooses among the layers; give their number (layers), or leave it out")
    if heads is None and intermediate_size is None and which != IMPORTANCE:
        raise DistilError(
            "data has no effect where nothing is chosen by importance; leave it out (in Python: students.from_teacher)"
        )
    wanted: list[tuple[Parts, int]] = []
    if heads is not None:
        parts = require_free_heads(teacher.model)
        check_fewer("heads", heads, parts.count(teacher.model.config))
        wanted.append((parts, heads))
    if intermediate_size is not None:
        parts = neurons_of(teacher.model)
        check_fewer("intermediate_size", intermediate_size, parts.count(teacher.model.config))
        wanted.append((parts, intermediate_size))
    sample = Sample.draw(teacher, data, importance_sample, seed)
    student = teacher
    if layers is not None:
        student = keep_layers(teacher, layers_to_keep(teacher, layers, which, sample))
    measured = [importance_of(student, parts, sample) for parts, _ in wanted]
    for (parts, number), importance in zip(wanted, measured, strict=True):
        student = keep_parts(student, parts, {place: most(one, number) for place, one in importance.items()})
    return student


def half_shape(teacher: Reader) -> tuple[int, int] | None:
    """Layers and neurons of a pruned student that takes about the time of a cut to half the teacher's layers.

    Five sixths of the layers, and a quarter of the neurons of their feed-forward layers, or seven twenty-fourths where
    the teacher is 768 wide or more: of 6 layers of 1,536 neurons 5 of 384, of 12 of 3,072 10 of 896. After training
    these are better than the cut by 3.8 and 1.9 F1 (docs/methods/measured.md).

    Args:
        teacher: The reader to prune.

    Returns:
        Both numbers; None where there is no such model, because the architecture cannot do with fewer neurons or the
        teacher is too small.
    """
    neurons = feed_forward_size(teacher.model)
    layers = round(int(teacher.model.config.num_hidden_layers) * 5 / 6)
    if neurons is None:
        return None
    share = 7 / 24 if int(teacher.model.config.hidden_size) >= WIDE else 1 / 4
    unit = 64 if neurons >= 512 else 1  # kernels work on tiles
    fewer = round(neurons * share / unit) * unit
    return (layers, fewer) if layers >= 1 and 1 <= fewer < neurons else None


def check_fewer(name: str, number: int, present: int) -> None:
    """Check the number of heads or neurons that remain.

    Raises:
        DistilError: It is not from 1 to less than there are.
    """
    expected = f"a whole number from 1 to {present - 1}, fewer than the teacher's {present}"
    check_argument(name, number, is_integer(number, 1) and number < present, expected)


def most(importance: Tensor, number: int) -> Tensor:
    """The numbers of the most important parts of a layer, counted from 0, in ascending order; of equals the first."""
    return importance.sort(descending=True, stable=True).indices[:number].sort().values


def narrowed(teacher: Reader, intermediate_size: int) -> Reader:
    """A model of a pruned student's shape, to measure what it costs: with the first neurons of each layer.

    Raises:
        DistilError: The size is not below the teacher's, or its feed-forward layers cannot be made narrower.
    """
    parts = neurons_of(teacher.model)
    check_fewer("intermediate_size", intermediate_size, parts.count(teacher.model.config))
    return keep_parts(teacher, parts, dict.fromkeys(parts.find(teacher.model), torch.arange(intermediate_size)))
