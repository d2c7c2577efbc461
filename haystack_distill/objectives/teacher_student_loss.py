"""TeacherStudentLoss: distillation in a training loop of your own, for any head that gives logits."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from haystack_distill.errors import DistilError
from haystack_distill.objectives.losses import kl_div_loss, mse_logits_loss
from haystack_distill.objectives.teacher_student import TeacherStudent
from haystack_distill.utils.devices import evaluating


class TeacherStudentLoss:
    """loss_w * the student's own loss + dist_w * the distance to a teacher's logits.

    The loss of the method `TeacherStudent` for training loops outside of this package: a loop in plain PyTorch, or a
    `transformers.Trainer` whose `compute_loss` is overridden. Student and teacher are modules of any kind whose logits
    have the same shape, such as classifiers and taggers. The teacher runs in evaluation mode and without gradients, and
    is no part of what an optimiser sees.

    Args:
        teacher: The teacher; on the device of its inputs.
        temperature: T, softens the distributions of teacher and student alike; with "kl" only.
        dist_w: Weight of the distance to the teacher.
        loss_w: Weight of the student's own loss.
        loss_function: "kl" (KL divergence of the distributions) or "mse" (mean squared difference of the logits).
        temperature_squared: Whether the KL divergence is multiplied by T^2 (Hinton et al. 2015, arXiv 1503.02531).

    Attributes:
        teacher: The teacher.
        options: The other arguments, as a `TeacherStudent`.

    Raises:
        DistilError: An option is wrong or would have no effect.

    Example:
        >>> teacher, student = nn.Linear(4, 3), nn.Linear(4, 3)
        >>> distillation = TeacherStudentLoss(teacher, temperature=2.0, dist_w=0.5)
        >>> inputs, labels = torch.randn(8, 4), torch.randint(3, (8,))
        >>> logits = student(inputs)
        >>> own = nn.functional.cross_entropy(logits, labels)
        >>> distillation.distill_loss(own, logits, distillation.teacher_logits(inputs)).backward()
    """

    def __init__(
        self,
        teacher: nn.Module,
        temperature: float = 1.0,
        dist_w: float = 0.1,
        loss_w: float = 1.0,
        loss_function: Literal["kl", "mse"] = "kl",
        *,
        temperature_squared: bool = False,
    ) -> None:
        self.teacher = teacher
        self.options = TeacherStudent(loss_w, dist_w, loss_function, temperature, temperature_squared)

    @staticmethod
    def add_args(parser: argparse.ArgumentParser) -> None:
        """Add the options to a command line: --kd_temp, --kd_dist_w, --kd_student_w, --kd_loss_fn, --kd_temp_squared.

        Args:
            parser: The parser; `from_args` reads what it returns.
        """
        default = TeacherStudent
        group = parser.add_argument_group("distillation")
        group.add_argument("--kd_temp", type=float, default=default.temperature, help="temperature, with kl only")
        group.add_argument(
            "--kd_dist_w", type=float, default=default.dist_w, help="weight of the distance to the teacher"
        )
        group.add_argument(
            "--kd_student_w", type=float, default=default.loss_w, help="weight of the student's own loss"
        )
        group.add_argument(
            "--kd_loss_fn", choices=["kl", "mse"], default=default.loss_function, help="how logits are compared"
        )
        group.add_argument("--kd_temp_squared", action="store_true", help="multiply kl by the temperature squared")

    @classmethod
    def from_args(cls, teacher: nn.Module, arguments: argparse.Namespace) -> TeacherStudentLoss:
        """The loss with the options of a command line.

        Args:
            teacher: The teacher.
            arguments: What a parser returned that `add_args` extended.

        Raises:
            DistilError: An option is wrong or would have no effect.
        """
        return cls(
            teacher,
            arguments.kd_temp,
            arguments.kd_dist_w,
            arguments.kd_student_w,
            arguments.kd_loss_fn,
            temperature_squared=arguments.kd_temp_squared,
        )

    def teacher_logits(self, inputs: Any) -> Any:
        """Run the teacher, in evaluation mode and without gradients.

        Args:
            inputs: A mapping of keyword arguments, of which "labels" is left out; a tuple or list of arguments; or the
                one argument.

        Returns:
            The logits (..., C): the output itself where it is a tensor, its `logits`, or the first of a tuple. For a
            question answering model a dictionary of `start_logits` and `end_logits`, for `distill_loss_dict`.

        Raises:
            DistilError: The output has none of these.
        """
        with torch.no_grad(), evaluating(self.teacher):
            if isinstance(inputs, Mapping):
                outputs = self.teacher(**{name: value for name, value in inputs.items() if name != "labels"})
            elif isinstance(inputs, (tuple, list)):
                outputs = self.teacher(*inputs)
            else:
                outputs = self.teacher(inputs)
        return _logits_of(outputs)

    def distill_loss(
        self, loss: Tensor, student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """The weighted sum of the student's own loss and of the distance to the teacher.

        Args:
            loss: The student's own loss, a scalar.
            student_logits: (..., C), such as (B, C) of a classifier or (B, L, C) of a tagger.
            teacher_logits: Likewise.
            mask: True for what is compared, None for all: the places, such as tokens that are no padding, (...); or
                the logits, such as those of a span head's tokens (B, L), in the shape of the logits.

        Returns:
            The total, a scalar. The distance is the mean over places, with "mse" also over the C logits.

        Raises:
            DistilError: The shapes differ.
        """
        return self.distill_loss_dict(
            loss, {"logits": student_logits}, {"logits": teacher_logits}, None if mask is None else {"logits": mask}
        )

    def distill_loss_dict(
        self,
        loss: Tensor,
        student_logits: Mapping[str, Tensor],
        teacher_logits: Mapping[str, Tensor],
        masks: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """As `distill_loss` for a model with several heads: the distance is the mean over heads.

        Args:
            loss: The student's own loss over all heads, a scalar.
            student_logits: The logits of each head by its name, (..., C).
            teacher_logits: Likewise, with the same names.
            masks: A mask for each head that needs one, by its name, as in `distill_loss`; None for none.

        Returns:
            The total, a scalar.

        Raises:
            DistilError: There is no head, the names differ, or the shapes of a head differ.
        """
        if not student_logits or student_logits.keys() != teacher_logits.keys():
            raise DistilError(
                f"the student has logits for the heads {sorted(student_logits)} and the teacher for "
                f"{sorted(teacher_logits)}; give both the same names, at least one"
            )
        weights, masks = self.options.loss_weights, masks or {}
        # Where its weight is 0 the student's own loss may be NaN: that of a batch without labels is.
        total = weights["labels"] * loss if "labels" in weights else torch.zeros_like(loss)
        if "distillation" in weights:
            distances = [
                self._distance(logits, teacher_logits[name], masks.get(name)) for name, logits in student_logits.items()
            ]
            total = total + weights["distillation"] * torch.stack(distances).mean()
        return total

    def _distance(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """The distance of one head, the mean over the places of which the mask keeps a logit."""
        allowed = (student.shape, student.shape[:-1])
        if student.shape != teacher.shape or (mask is not None and mask.shape not in allowed):
            shapes = [tuple(student.shape), tuple(teacher.shape), None if mask is None else tuple(mask.shape)]
            raise DistilError(
                f"the logits of student and teacher and the mask have the shapes {shapes[0]}, {shapes[1]} and "
                f"{shapes[2]}; give logits of the same shape (..., C) and a mask of shape (...) or (..., C)"
            )
        if mask is None:
            mask = torch.ones_like(student, dtype=torch.bool)
        elif mask.dim() < student.dim():
            mask = mask.unsqueeze(-1).expand_as(student)
        own, target, kept = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (student, teacher, mask.bool()))
        places = kept.any(dim=1)
        own, target, kept = own[places], target[places], kept[places]
        if self.options.loss_function == "kl":
            values = kl_div_loss(own, target, kept, kept, self.options.temperature)
        else:
            values = mse_logits_loss(own, target, kept)
        return values.sum() / max(1, len(values))


def _logits_of(outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, (tuple, list)) and outputs and isinstance(outputs[0], Tensor):
        return outputs[0]
    found = outputs if isinstance(outputs, Mapping) else vars(outputs) if hasattr(outputs, "__dict__") else {}
    if "logits" in found:
        return found["logits"]
    heads = {name: found[name] for name in ("start_logits", "end_logits") if name in found}
    if not heads:
        raise DistilError(
            f"the teacher returns a {type(outputs).__name__} without logits; call the teacher yourself, and give its "
            "logits to distill_loss"
        )
    return heads
