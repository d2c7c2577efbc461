"""Where a reader's time goes: reading files, tokenising, the model, the spans."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from haystack_distill.data.squad.load import OnBadExample, load_examples
from haystack_distill.evaluation.measurements import question_context_pairs, running_on
from haystack_distill.evaluation.passages import answer_with_passages, with_other_passages
from haystack_distill.models.reader import ExampleSource, Reader
from haystack_distill.utils.checks import check_argument, is_integer
from haystack_distill.utils.files import temporary_directory
from haystack_distill.utils.stopwatch import Stopwatch, next_lap, part

_WARM_UP = 3  # questions, untimed: the first ones allocate memory and fill caches


@dataclass(frozen=True)
class Profile:
    """How long the parts of a piece of work take.

    Attributes:
        unit: What was measured, "question" or "step".
        n: How many of them.
        windows: Windows of one, on average.
        once: Seconds of what is done once, before the first one, by part.
        each: Seconds of one by part, the mean over `n`.
        device: Device, precision and threads, such as "cpu, fp32, 2 threads".
    """

    unit: str
    n: int
    windows: float
    once: dict[str, float]
    each: dict[str, float]
    device: str

    @property
    def seconds(self) -> float:
        """Seconds of a question, or of a step."""
        return sum(self.each.values())


def profile_reader(
    reader: Reader,
    data: ExampleSource,
    *,
    questions: int = 100,
    passages: int = 1,
    on_bad_example: OnBadExample = "error",
) -> Profile:
    """Ask a reader one question at a time, as a pipeline does, and measure the parts of that.

    The parts: `reading` (once, the whole data, not from the cache), `tokenising` question and contexts, `batches`
    (which includes padding), `model`, and `spans` (from logits to answers).

    Args:
        reader: The reader, on any backend.
        data: Questions, as `data.squad.load.load_examples` accepts them; labels are needed only for `passages`.
        questions: How many of them to ask, spread evenly.
        passages: Passages of each question: its own, and others of the same title.
        on_bad_example: As for `load_examples`.

    Raises:
        DataError: The data cannot be read, or has no questions.
        DistilError: A number is below 1, or no question has so many passages.

    Example:
        >>> from haystack_distill.data.sample import sample_path
        >>> from haystack_distill.models.embedded_teacher import embedded_teacher
        >>> profile = profile_reader(embedded_teacher(), sample_path("dev"), questions=2)
        >>> sorted(profile.each)
        ['batches', 'model', 'rest', 'spans', 'tokenising']
    """
    for name, value in (("questions", questions), ("passages", passages)):
        check_argument(name, value, is_integer(value, 1), "at least 1 and whole")
    watch = Stopwatch(waiting_for(reader.device))
    with temporary_directory() as scratch:
        with watch.running(), part("reading"):
            examples = load_examples(
                data,
                split="validation",
                on_bad_example=on_bad_example,
                cache_dir=scratch,
                only="questions" if passages == 1 else None,
            )
        if passages == 1:
            pairs = question_context_pairs(examples, questions)
            asked, contexts = [question for question, _ in pairs], [[context] for _, context in pairs]
        else:
            chosen, contexts = with_other_passages(examples, questions, passages)
            asked = list(chosen["question"])
    answer_with_passages(reader, asked[:_WARM_UP], contexts[:_WARM_UP])
    windows = 0
    with watch.running():
        for question, own in zip(asked, contexts, strict=True):
            next_lap()
            windows += len(answer_with_passages(reader, [question], [own]).tokens)
    once, _, *laps = watch.laps
    return Profile("question", len(asked), windows / len(asked), named(once), mean_of(laps), running_on(reader))


def waiting_for(device: torch.device) -> Callable[[], object] | None:
    """What waits until a device has computed all that it was given; None for the processor, which does not lag."""
    return torch.cuda.synchronize if device.type == "cuda" else None


def named(lap: Mapping[str, float]) -> dict[str, float]:
    """The parts of a lap that have a name."""
    return {name: seconds for name, seconds in lap.items() if name != Stopwatch.REST}


def mean_of(laps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean seconds of each part over some laps, in the order in which the parts first ended, the rest last."""
    names = [*dict.fromkeys(name for lap in laps for name in named(lap)), Stopwatch.REST]
    return {name: sum(lap.get(name, 0.0) for lap in laps) / len(laps) for name in names}
