"""Objectives whose teacher's answers are softened by a temperature that may change while a run lasts."""

from __future__ import annotations

from typing import Any

from haystack_distill.objectives.method import temperature_at
from haystack_distill.objectives.objective import Objective


class SoftenedObjective(Objective):
    """An objective with a temperature in each step, and weights that follow it.

    Attributes:
        options: The options of the method: `temperature`, `final_temperature` and `loss_weights_at`.
        temperature: That of the present step.
    """

    options: Any
    temperature: float

    def begin_step(self, progress: float) -> None:
        """Set the temperature of this step, and the weight T^2 with it; see `Objective.begin_step`."""
        self.temperature = temperature_at(self.options, progress)
        self.weights = self.options.loss_weights_at(self.temperature)
