"""The memory that each adaptation takes for gradients and optimiser, counted from the tensors of one step.

python benchmarks/adaptation_memory.py --model MODEL [--adaptations all,lora,...] [--output FILE]
"""

import argparse
import json
from pathlib import Path

from torch import Tensor
from transformers import TrainerCallback

from haystack_distill import Reader, ReaderTrainer, TrainingSettings, WindowSettings
from haystack_distill.data.sample import sample_path
from haystack_distill.training.adaptation import ADAPTATIONS


class _Count(TrainerCallback):
    """Counts before the gradients of the last step are freed, and the optimiser's state after it."""

    def __init__(self) -> None:
        self.gradients = self.state = self.trained = self.total = 0

    def on_pre_optimizer_step(self, args, state, control, model, **_) -> None:  # type: ignore[no-untyped-def]
        parameters = list(model.parameters())
        self.total = sum(parameter.numel() for parameter in parameters)
        self.trained = sum(parameter.numel() for parameter in parameters if parameter.grad is not None)
        self.gradients = sum(_bytes(parameter.grad) for parameter in parameters if parameter.grad is not None)

    def on_step_end(self, args, state, control, optimizer, **_) -> None:  # type: ignore[no-untyped-def]
        states = optimizer.state.values()
        self.state = sum(_bytes(one) for each in states for one in each.values() if isinstance(one, Tensor))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def main() -> None:
    """Print a line per adaptation, and write them to a file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--adaptations", default=",".join(ADAPTATIONS))
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    lines = []
    for name in given.adaptations.split(","):
        student = Reader.load(given.model, window_settings=WindowSettings(128, 64, 64))
        count = _Count()
        settings = TrainingSettings(max_steps=1, batch_size=4, progress=False, checkpoint_every=None)
        trainer = ReaderTrainer(student, None, settings)
        trainer.distil(None, sample_path("train"), "labels", adaptation=ADAPTATIONS[name](), callbacks=[count])
        line = {
            "adaptation": name,
            "trained": count.trained,
            "share": count.trained / count.total,
            "gradient_megabytes": count.gradients / 1e6,
            "optimizer_megabytes": count.state / 1e6,
        }
        lines.append(line)
        print(
            f"{name:20} {count.trained:12,} weights ({line['share']:7.3%}), gradients {count.gradients / 1e6:8.2f} MB, "
            f"optimiser {count.state / 1e6:8.2f} MB",
            flush=True,
        )
    if given.output:
        given.output.write_text(json.dumps(lines, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
