"""Where the time of training goes: reading, the teacher, forward and backward passes, the optimiser."""

from dataclasses import replace

from haystack_distill.data.squad.load import OnBadExample, load_examples
from haystack_distill.evaluation.measurements import running_on
from haystack_distill.evaluation.profile import Profile, mean_of, waiting_for
from haystack_distill.models.reader import ExampleSource, Reader
from haystack_distill.teachers.choice import TeacherSource
from haystack_distill.training.adaptation import Adaptation
from haystack_distill.training.reader_trainer import ReaderTrainer
from haystack_distill.training.run import MethodSource
from haystack_distill.training.settings import TrainingSettings
from haystack_distill.utils.checks import check_argument, is_integer
from haystack_distill.utils.files import temporary_directory
from haystack_distill.utils.stopwatch import Stopwatch, part

_PARTS = ("batches", "teacher", "forward", "losses", "backward", "optimiser")
_WARM_UP = 3  # steps, untimed: the first ones allocate memory and the optimiser's state


def profile_training(
    student: Reader,
    teacher: TeacherSource | None,
    data: ExampleSource,
    method: MethodSource,
    settings: TrainingSettings | None = None,
    *,
    steps: int = 20,
    questions: int = 200,
    adaptation: Adaptation | None = None,
    on_bad_example: OnBadExample = "error",
) -> Profile:
    """Train a copy of a student for some steps, and measure the parts of a step.

    Once, with nothing from the cache: `reading` (the whole data), and for the questions `tokenising` and, where its
    logits are cached, `teacher`. In each step: `batches` (rows from disk, padding, cached logits, the copy to the
    device), `teacher` where it runs in the step, `forward`, `losses`, `backward`, and `optimiser`, which includes the
    clipping of gradients, schedule and log.

    Args:
        student: The student; it is not changed.
        teacher: As for `ReaderTrainer.distil`.
        data: Examples, as for `ReaderTrainer.distil`.
        method: As for `ReaderTrainer.distil`.
        settings: Batch size, precision, optimiser and so on; the steps are those below.
        steps: How many steps to measure, after some that warm up.
        questions: How many questions to train on, spread evenly over the data.
        adaptation: As for `ReaderTrainer.distil`.
        on_bad_example: As for `load_examples`.

    Raises:
        DataError: The data cannot be read, or has no questions.
        DistilError: A number is below 1, or as `ReaderTrainer.distil`.
    """
    for name, value in (("questions", questions), ("steps", steps)):
        check_argument(name, value, is_integer(value, 1), "at least 1 and whole")
    settings = replace(
        (settings or TrainingSettings()).unmeasured(),
        max_steps=_WARM_UP + steps + 1,  # after the last one the run ends
        checkpoint_every=None,
        resume=False,
        tensorboard=False,
        progress=False,
    )
    watch = Stopwatch(waiting_for(student.device))
    with temporary_directory() as scratch, watch.running():
        with part("reading"):
            examples = load_examples(data, on_bad_example=on_bad_example, cache_dir=scratch)
        n = len(examples)
        questions = min(questions, n)
        chosen = examples.select([row * n // questions for row in range(questions)])
        trainer = ReaderTrainer(student.copy(), None, settings, cache_dir=scratch)
        trainer.distil(teacher, chosen, method, adaptation=None if adaptation is None else adaptation.unmeasured())
        windows = student.cut(chosen, cache_dir=scratch)
    size = {"accumulation": settings.gradient_accumulation_steps}
    batches = windows.batches(settings.batch_size, seed=settings.seed, **size)
    once, *laps = watch.laps
    trained = [lap for lap in laps if "backward" in lap]
    measured = mean_of(trained[_WARM_UP : _WARM_UP + steps])
    measured["optimiser"] = measured.pop(Stopwatch.REST)
    each = {name: measured[name] for name in _PARTS if name in measured}
    return Profile("step", steps, batches.windows_per_step, _once(once), each, running_on(student))


def _once(lap: dict[str, float]) -> dict[str, float]:
    """What is done before the first step; a pass of the teacher over the data with all its parts."""
    found = {name: seconds for name, seconds in lap.items() if name in ("reading", "tokenising")}
    if "model" in lap:
        found["teacher"] = sum(lap[name] for name in ("teacher", "batches", "model"))
    return found
