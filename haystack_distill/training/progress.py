"""Progress of a training run: a bar with the loss, the speed and the time left, or one plain line per log event."""

import contextlib
from collections.abc import Iterator
from typing import Any

from transformers import TrainerCallback

from haystack_distill.utils.progress import ProgressBar, progress_bar

_COMPONENT = "loss_"  # prefix of the loss components in the log


@contextlib.contextmanager
def training_progress(
    windows_per_step: float, *, visible: bool = True, name: str = "training"
) -> Iterator[TrainerCallback]:
    """A callback for Trainer that displays its progress, and closes the display also when the run fails.

    It replaces transformers' `ProgressCallback` and `PrinterCallback`, which print dictionaries.

    Args:
        windows_per_step: Average number of windows per optimiser step over all processes; the speed is in windows.
        visible: Whether to display anything.
        name: The title of the bar.
    """
    with contextlib.ExitStack() as stack:
        yield _TrainingProgress(stack, name, windows_per_step, visible)


class _TrainingProgress(TrainerCallback):
    def __init__(self, stack: contextlib.ExitStack, name: str, windows_per_step: float, visible: bool) -> None:
        self.stack, self.name, self.windows_per_step, self.visible = stack, name, windows_per_step, visible
        self.bar: ProgressBar | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar = self.stack.enter_context(
            progress_bar(
                self.name,
                state.max_steps,
                "steps",
                visible=self.visible,
                done=state.global_step,
                speed=("windows", self.windows_per_step),
            )
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.advance(state.global_step - self.bar.done)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if self.bar is None or logs is None:
            return
        if "loss" in logs:
            components = {key.removeprefix(_COMPONENT): logs[key] for key in logs if key.startswith(_COMPONENT)}
            details = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in components.items())
            self.bar.report(f"loss {logs['loss']:.4g}", details if len(components) > 1 else "")
        if "eval_f1" in logs:
            measured = f"exact {logs['eval_exact']:.1f}, F1 {logs['eval_f1']:.1f}"
            self.bar.announce(f"step {state.global_step}/{state.max_steps} evaluation: {measured}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.stack.close()
        self.bar = None
