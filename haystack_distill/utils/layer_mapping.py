"""Which layers of a teacher stand for those of a shallower student."""

BLOCK_STARTS = "block_starts"  # the layers that a cut keeps by default
IMPORTANCE = "importance"  # the layers that cost most to leave out, by measurement


def uniform_layers(n_student: int, n_teacher: int) -> list[int]:
    """Teacher layers, counted from 1, evenly spread and always with the last, as TinyBERT maps them (arXiv 1909.10351).

    Student layer m gets m * n_teacher / n_student, rounded half up; a student deeper than its teacher gets some layers
    more than once.
    """
    # (2 m N + M) // 2 M is m N / M rounded, without floating point.
    return [max(1, (2 * m * n_teacher + n_student) // (2 * n_student)) for m in range(1, n_student + 1)]


def last_layers(n_student: int, n_teacher: int) -> list[int]:
    """The last `n_student` layers of a teacher, counted from 1."""
    return list(range(n_teacher - n_student + 1, n_teacher + 1))


def block_starts(n_student: int, n_teacher: int) -> list[int]:
    """The first layer of each block of teacher layers, counted from 1; `uniform_layers` has the last ones.

    The hidden states that layer m of a student reads, once its layers have learnt those of `uniform_layers`, are what
    this layer of the teacher reads.
    """
    return [1, *(layer + 1 for layer in uniform_layers(n_student, n_teacher)[:-1])]
