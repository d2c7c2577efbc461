"""The training loop: transformers' Trainer with objectives, teachers and atomic checkpoints."""

import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Protocol

import safetensors.torch
import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainerState, set_seed

from haystack_distill.data.samplers import StepBatches
from haystack_distill.data.text_windows import TextWindows
from haystack_distill.errors import DistilError
from haystack_distill.models.early_exit import EarlyExitModel
from haystack_distill.models.heads import Heads, choosing
from haystack_distill.models.outputs import ModelOutputs, run_model
from haystack_distill.objectives.objective import LossTerm, Objective
from haystack_distill.teachers.ensemble import members_of
from haystack_distill.teachers.teacher import Teacher
from haystack_distill.training.adaptation import Adaptation, AllWeights, adapted, has_begun
from haystack_distill.training.checkpoints import Checkpoints
from haystack_distill.training.compilation import CompiledLayers
from haystack_distill.training.evaluations import scores_of
from haystack_distill.training.optimisation import TRAINER_SCHEDULES, cyclic_schedule, is_plain, make_optimizer
from haystack_distill.training.progress import training_progress
from haystack_distill.training.settings import TrainingSettings
from haystack_distill.training.step_losses import StepLosses
from haystack_distill.utils.ahead import one_ahead
from haystack_distill.utils.allocator import kept_memory
from haystack_distill.utils.atomic import inherit_permissions, write_json
from haystack_distill.utils.cpu_attention import FastBFloat16Gradients
from haystack_distill.utils.cpu_linear import kept_casts
from haystack_distill.utils.devices import autocast, length_multiple, resolve_precision
from haystack_distill.utils.files import writing
from haystack_distill.utils.model_inputs import model_inputs, takes_token_types
from haystack_distill.utils.processes import run_on_main_process
from haystack_distill.utils.stopwatch import next_lap, part
from haystack_distill.utils.transformers_compat import training_arguments
from haystack_distill.utils.weights import load_weights, save_weights

logger = logging.getLogger(__name__)

_WEIGHTS = "model.safetensors"
_PLACE = "place.json"  # the position in a stream from which to resume
_LOG = "log.json"  # the losses since the last line of the log


class Runnable(Protocol):
    """A model with its device and precision: a `Reader` or a `LanguageModel`."""

    model: PreTrainedModel
    device: torch.device
    precision: str


def require_own_weights(student: Runnable, teacher: Runnable) -> None:
    """Check that student and teacher do not share their weights, even through different wrappers.

    Raises:
        DistilError: They share their input embeddings.
    """
    if teacher.model.get_input_embeddings() is student.model.get_input_embeddings():
        raise DistilError(
            "teacher and student are the same model; cut the student from the teacher (students.from_teacher) or copy "
            "it first"
        )


class TrainingData(Protocol):
    """The training data of the loop: `data.windows.Windows` or `data.text_windows.TextWindows`."""

    def batches(self, batch_size: int, *, seed: int, **sharing: int) -> StepBatches:
        """The windows of each batch, in order."""

    def __getitems__(self, indices: Sequence[int]) -> Any:
        """The rows of the given windows; `~i` stands for window i with weight 0."""

    def collate(self, rows: Any, multiple: int = 1) -> dict[str, Tensor]:
        """Collate rows into a batch, padded to a multiple; it includes `weight` (B,) and `window` (B,)."""

    def place_of(self, window: int) -> dict[str, Any] | None:
        """The position of a window, for `go_to`; None for data with random access."""

    def go_to(self, place: dict[str, Any]) -> None:
        """Continue from a position that `place_of` returned."""

    def describe(self, windows: Iterable[int]) -> str:
        """A description of the given windows for error messages."""


def run_loop(
    student: Runnable,
    objective: Objective,
    data: TrainingData,
    settings: TrainingSettings,
    checkpoints: Checkpoints,
    *,
    teacher: Teacher | None = None,
    adaptation: Adaptation | None = None,
    heads: Heads | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    evaluate: Callable[[], dict[str, float]] | None = None,
    name: str = "training",
) -> tuple[int, list[dict[str, float]], int]:
    """Train the student's model in place.

    Args:
        student: The model to train.
        objective: The objective.
        data: The training data.
        settings: See `TrainingSettings`.
        checkpoints: The checkpoints to resume from and to write.
        teacher: A prepared teacher, for an objective that needs one.
        adaptation: Which weights are trained; None for all.
        heads: The heads of the student, where parts of the data have their own; `data` then has `head` in its batches.
        callbacks: Additional callbacks for transformers' Trainer.
        evaluate: Returns the metrics of the student with its current weights; None without dev data.
        name: The name of the run in progress lines.

    Returns:
        The number of optimiser steps, the log, and the number of weights that the optimiser has changed.

    Raises:
        DistilError: The loss is not finite, the objective does not return the terms that it declares, or no checkpoint
            can be resumed from.
    """
    adaptation = adaptation or AllWeights()
    set_seed(settings.seed)
    precision = resolve_precision(settings.precision, student.device, student.model.config.model_type)
    student.model.to(student.device)
    resumed_from = run_on_main_process(checkpoints.newest, PartialState()) if settings.resume else None
    try:
        with (
            _dropout(student.model, settings.dropout),
            contextlib.nullcontext() if teacher is None else teacher.active(),
            contextlib.nullcontext() if heads is None else heads.inserted(student.model),
            adapted(student.model, adaptation),
            FastBFloat16Gradients() if student.device.type == "cpu" else contextlib.nullcontext(),
            kept_casts(student.device, precision),
            kept_memory(),
            writing(checkpoints.folder),
        ):
            more = [*callbacks, *adaptation.callbacks(student.model, settings)]
            # Weights without a gradient in some steps: without a loss on the logits, those of the head and of layers
            # that are not mapped; where a part of the objective has no weight, those of its projections.
            projections = any(True for _ in objective.parameters())
            unused = objective.student_request.beyond_logits or projections or adaptation.freezes_later
            unused = unused or _has_idle_weights(student.model)
            trainer = _LoopTrainer(
                student, objective, data, teacher, evaluate, settings, checkpoints, more, unused, adaptation
            )
            speed = trainer.batches.windows_per_step
            with training_progress(speed, visible=settings.progress, name=name) as progress:
                trainer.add_callback(progress)
                with contextlib.suppress(_NothingLeft):
                    trainer.train(resume_from_checkpoint=None if resumed_from is None else str(resumed_from))
            trained = sum(parameter.numel() for parameter, state in trainer.optimizer.state.items() if state)
            trainer.take_best()
    finally:
        student.model.eval()  # also after an interruption: the student must not answer with dropout
    student.model.to(student.device)
    return trainer.state.global_step, trainer.state.log_history, trained


def _has_idle_weights(model: PreTrainedModel) -> bool:
    """Whether a model has weights that its start and end logits do not depend on: early exits, or a pooler."""
    return isinstance(model, EarlyExitModel) or getattr(model.base_model, "pooler", None) is not None


def _compiled(student: Runnable, teacher: Teacher | None, objective: Objective) -> CompiledLayers:
    """The context in which the layers of all models that run while it trains are compiled."""
    live = [model for one in members_of(teacher) if not one.caches_logits for model in one.models()]
    teachers = [(one.model, objective.teacher_request) for one in live]
    return CompiledLayers([(student.model, objective.student_request), *teachers])


class StudentAndObjective(nn.Module):
    """The module that Trainer optimises, saves and wraps: the student and the parameters of its objective."""

    accepts_loss_kwargs = True  # the loss is divided by the windows of the whole step already

    def __init__(self, student: PreTrainedModel, objective: Objective) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self.token_types = takes_token_types(student)

    def forward(self, batch: dict[str, Tensor], teacher: ModelOutputs | None = None) -> dict[str, LossTerm]:
        """The objective's unweighted terms by name."""
        inputs = model_inputs(batch, token_types=self.token_types)
        with choosing(self.student, batch.get("head")), part("forward"):
            outputs = run_model(self.student, inputs, self.objective.student_request)
        terms: dict[str, LossTerm] = self.objective(outputs, teacher, batch)
        return terms


class _LoopTrainer(Trainer):
    def __init__(
        self,
        student: Runnable,
        objective: Objective,
        data: TrainingData,
        teacher: Teacher | None,
        evaluate: Callable[[], dict[str, float]] | None,
        settings: TrainingSettings,
        checkpoints: Checkpoints,
        more_callbacks: Sequence[TrainerCallback],
        unused: bool,
        adaptation: Adaptation,
    ) -> None:
        self.data = data
        self.checkpoints = checkpoints
        self.teacher = teacher
        self.measure = evaluate
        self.objective = objective
        self.settings = settings
        self.precision = resolve_precision(settings.precision, student.device, student.model.config.model_type)
        has_dev = evaluate is not None
        arguments = _arguments(settings, checkpoints.folder, student.device, self.precision, has_dev, unused)
        self.batches = data.batches(
            settings.batch_size,
            accumulation=settings.gradient_accumulation_steps,
            processes=arguments.world_size,
            process=arguments.process_index,
            seed=settings.seed,
        )
        steps = settings.max_steps or self.batches.steps * settings.n_epochs
        require_evaluations(settings, adaptation, steps)
        # Rounded down; transformers rounds up, which gives a run of one step a learning rate of 0.
        arguments.warmup_steps = int(settings.warmup_proportion * steps)
        callbacks: list[TrainerCallback] = [_EpochOrder(self.batches), _LastStep()]
        if has_dev and settings.evaluation_interval == "epoch":
            callbacks.append(_EvaluationPerEpoch(self.batches))
        starts = adaptation.phase_starts(student.model, settings)
        if settings.early_stopping_patience:
            callbacks.append(_EarlyStopping(settings.early_stopping_patience, settings.best_by, starts))
        if settings.keep_best and has_dev:
            callbacks.append(_BestOfPhase(starts, self._take_best_so_far))
        if settings.tensorboard:
            callbacks.append(_tensorboard(checkpoints.folder.parent / "tensorboard"))
        callbacks += more_callbacks
        super().__init__(
            model=StudentAndObjective(student.model, objective).to(student.device),
            args=arguments,
            train_dataset=data,
            eval_dataset=data if has_dev else None,  # Trainer requires one; `evaluate` has its own
            data_collator=self._collate,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)  # Trainer adds it when its progress bar is off; it would print the log
        self._windows_with: dict[str, float] = {}  # number of windows with each term in this step, over all processes
        compiled = _compiled(student, teacher, objective) if settings.torch_compile else contextlib.nullcontext()
        self._compiled: AbstractContextManager[Any] = compiled
        self._losses = StepLosses(student.device, data.describe)  # since the last log entry
        self._terms_checked = False
        self._gradient_checked = adaptation.freezes_later  # what a method trains of its own may learn alone at first

    def _collate(self, rows: Any) -> dict[str, Tensor]:
        batch = self.data.collate(rows, length_multiple(self.precision))
        return batch if self.teacher is None else batch | self.teacher.cached(batch)

    def create_optimizer(self, *arguments: Any) -> torch.optim.Optimizer:
        if self.optimizer is None and not is_plain(self.settings):  # type: ignore[has-type]
            names = set(self.get_decay_parameter_names(self.model))
            self.optimizer = make_optimizer(
                self.settings,
                self.model.student,  # type: ignore[union-attr,arg-type]
                self.objective,
                [parameter for name, parameter in self.model.named_parameters() if name in names],  # type: ignore[union-attr]
                self._adamw,
            )
        return super().create_optimizer(*arguments)

    def _adamw(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        kind, keywords = self.get_optimizer_cls_and_kwargs(self.args, self.model)  # type: ignore[arg-type]
        made: torch.optim.Optimizer = kind(groups, **keywords)
        return made

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        if self.settings.n_cycles is not None and self.lr_scheduler is None:  # type: ignore[has-type]
            self.lr_scheduler = cyclic_schedule(
                optimizer or self.optimizer,  # type: ignore[arg-type]
                warmup=self.args.warmup_steps,
                steps=num_training_steps,
                cycles=self.settings.n_cycles,
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def get_train_dataloader(self) -> DataLoader:
        # Not prepared by Accelerate: the sampler divides the batches among processes, and makes their order resumable.
        # A corpus is read ahead by itself, and its place must not move on while a checkpoint is written.
        ahead = self.args.device.type != "cpu" and not isinstance(self.data, TextWindows)
        return (_LoaderAhead if ahead else DataLoader)(
            self.data,  # type: ignore[arg-type]
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            pin_memory=self.args.device.type == "cuda",
            generator=torch.Generator(),  # otherwise iterating would draw a number from the global generator
        )

    def _prepare_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        # From pinned memory, a copy need not wait for what the device still computes.
        with part("batches"):
            return {name: tensor.to(self.args.device, non_blocking=True) for name, tensor in inputs.items()}

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, *_: Any) -> tuple[list, int]:
        """The batches of one optimiser step, and the number of their windows over all processes."""
        batches = []
        next_lap()
        # `num_batches` is ignored: transformers 4.49 miscounts the batches of an epoch's last step.
        for _number in range(self.args.gradient_accumulation_steps):
            with contextlib.suppress(StopIteration), part("batches"):
                batches.append(next(epoch_iterator))
        if batches:
            self.objective.begin_step(self.state.global_step / max(1, self.state.max_steps - 1))
        masks = [_masks_of(self.objective, batch) for batch in batches]
        weights = [batch["weight"] for batch in batches]
        names = list(self.objective.weights)
        counts = [sum(float(weight.sum()) for weight in weights)]
        for name in names:
            pairs = zip(weights, masks, strict=True)
            counts.append(sum(float((weight * mask[name]).sum()) for weight, mask in pairs))
        if self.args.world_size > 1:
            gathered = self.accelerator.gather(torch.tensor([counts], device=self.args.device))
            counts = gathered.sum(dim=0).tolist()
        self._windows_with = dict(zip(names, counts[1:], strict=True))
        if batches:
            self._losses.begin_step(name for name in names if self._windows_with[name])
        return batches, int(counts[0])

    def training_step(self, *arguments: Any, **keywords: Any) -> Tensor:
        with part("backward"):  # and within it the batch and the loss, parts of their own
            loss = super().training_step(*arguments, **keywords)
        if not self._gradient_checked:
            self._gradient_checked = True
            # Projections learn in any case, so that the loss alone does not tell whether the student does. Where
            # DeepSpeed or FSDP divides gradients among processes, they are not those of the parameters.
            divided = self.is_deepspeed_enabled or self.is_fsdp_enabled
            if self.objective.trains_student and not divided and self._has_no_gradient():
                raise self._nothing_learns()
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: int | Tensor | None = None,
    ) -> Tensor:
        with part("losses"), self._compiled:
            return self._loss(model, inputs)

    def _loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """This batch's share of the loss of the optimiser step.

        The loss of the step is the sum over terms of weight * mean, the mean being over those windows of the step that
        have the term.
        """
        teacher_outputs = None
        if self.teacher is not None:
            with part("teacher"):
                teacher_outputs = self.teacher.outputs(inputs, self.objective.teacher_request)
        masks = self.objective.masks(inputs)
        with autocast(self.args.device, self.precision):
            terms = model(inputs, teacher_outputs)
        if not self._terms_checked:
            _check_terms(self.objective, terms, inputs)
            self._terms_checked = True
        parts = {}
        for name, term in terms.items():
            # Windows of weight 0 only fill a batch. Processes average their gradients, hence the factor world_size.
            count = self._windows_with[name]
            share = inputs["weight"] * masks[name] * (self.args.world_size / count if count else 0.0)
            parts[name] = (term.values.masked_fill(~masks[name], 0.0) * share).sum()
        total = torch.stack([parts[name] * self.objective.weights[name] for name in parts]).sum()
        self._losses.add(self.state.global_step + 1, parts, total, inputs["window"])
        if not total.requires_grad:
            raise self._nothing_learns()
        return total

    def _has_no_gradient(self) -> bool:
        return all(parameter.grad is None for parameter in self.model.student.parameters())  # type: ignore[union-attr]

    def _nothing_learns(self) -> DistilError:
        return DistilError(
            f"no trained weight of the student changes the loss at step {self.state.global_step + 1}: the adaptation "
            "freezes all that the method compares; choose another adaptation or, for layers, layer_mapping='uniform'"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            # "loss" too: Trainer's own is the mean of the steps since a run was resumed.
            logs |= self._over_processes(self._losses.means())
            self._losses.clear()
        logs.pop("train_loss", None)  # the same of the whole run
        super().log(logs, *(() if start_time is None else (start_time,)))  # transformers 4.46 has no such argument

    def _over_processes(self, values: dict[str, float]) -> dict[str, float]:
        """The means of some numbers over the processes, each of which has its share of the windows."""
        if self.args.world_size == 1 or not values:
            return values
        here = torch.tensor(list(values.values()), dtype=torch.float64, device=self.args.device)
        return dict(zip(values, self.accelerator.reduce(here, "mean").tolist(), strict=True))

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """SQuAD metrics of the student with its current weights."""
        assert self.measure is not None
        self._losses.read()
        measured = self.measure()
        self.model.train()
        metrics = {f"eval_{name}": value for name, value in measured.items()}
        self.log(dict(metrics))
        control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)  # type: ignore[has-type]
        self.control = control
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Save student and projections as safetensors, shared weights once, without pickled arguments."""
        directory = Path(output_dir or self.args.output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        if state_dict is not None:  # gathered by FSDP or DeepSpeed
            safetensors.torch.save_file({k: v.contiguous().cpu() for k, v in state_dict.items()}, directory / _WEIGHTS)
        else:
            save_weights(self.accelerator.unwrap_model(self.model), directory / _WEIGHTS)
        inherit_permissions(directory / _WEIGHTS)

    def _get_output_dir(self, *_: Any, **__: Any) -> str:
        return str(self.checkpoints.staging)  # the directory in which Trainer writes a checkpoint

    def _save_checkpoint(self, *arguments: Any, **keywords: Any) -> None:
        losses = self._losses.state()  # read first: a checkpoint of a student that is lost would be resumed from
        losses["sums"] = self._over_processes(losses["sums"])
        super()._save_checkpoint(*arguments, **keywords)
        step = self.state.global_step
        place = self.data.place_of(step * self.batches.step_size)
        if self.args.should_save:
            written = self.checkpoints.staging / f"checkpoint-{step}"
            write_json(written / _LOG, losses)
            if place is not None:
                write_json(written / _PLACE, place)
        self.accelerator.wait_for_everyone()  # each process writes the state of its random number generators
        if self.args.should_save:
            self.checkpoints.publish(step, self._best_step())

    def _best_step(self) -> int | None:
        """The step of the best evaluation so far, the earliest of equals; None without `keep_best`."""
        scores = scores_of(self.state.log_history, self.settings.best_by)
        if not (self.checkpoints.keep_best and scores):
            return None
        return max(scores, key=lambda step: scores[step])

    def take_best(self) -> None:
        """With `keep_best`, load the weights of the best evaluation."""
        best = self._best_step()
        if best is None:
            return
        # By its step, not by the path that Trainer recorded: the directory may have been moved since.
        self._load_from_checkpoint(str(run_on_main_process(lambda: self.checkpoints.best(best), PartialState())))

    def _take_best_so_far(self) -> None:
        """As `take_best`, in the middle of a run: the data stay where they are."""
        best = self._best_step()
        if best is not None and best != self.state.global_step:
            logger.info("step %d: the next phase begins with the weights of step %d", self.state.global_step, best)
            self._load_weights(run_on_main_process(lambda: self.checkpoints.best(best), PartialState()))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load a checkpoint strictly; Trainer would ignore missing weights."""
        place, log = Path(resume_from_checkpoint) / _PLACE, Path(resume_from_checkpoint) / _LOG
        if place.exists():
            self.data.go_to(json.loads(place.read_text(encoding="utf-8")))
        if log.exists():
            self._losses.restore(json.loads(log.read_text(encoding="utf-8")))
        self._load_weights(Path(resume_from_checkpoint), model)

    def _load_weights(self, checkpoint: Path, model: nn.Module | None = None) -> None:
        target = self.accelerator.unwrap_model(model if model is not None else self.model)
        try:
            load_weights(target, checkpoint / _WEIGHTS)
        except RuntimeError as error:
            raise DistilError(
                f"the checkpoint {checkpoint} does not fit this run ({error}); remove it to resume from an earlier one"
            ) from error


def require_evaluations(settings: TrainingSettings, adaptation: Adaptation, steps: int) -> None:
    """Check that a run is evaluated at least once, where something is chosen by its evaluations.

    Raises:
        DistilError: The first evaluation would come after the last of its optimiser steps.
    """
    interval = settings.evaluation_interval
    for option in ("keep_best" if settings.keep_best else None, adaptation.needs_evaluations):
        if option is not None and isinstance(interval, int) and interval > steps:
            raise DistilError(
                f"evaluate_every={interval} comes after the last of the {steps} steps, so {option} would have no "
                f"evaluation to choose by; lower it, or leave {option} out"
            )


class _LoaderAhead(DataLoader):
    """Reads and pads a batch while the device computes the one before it."""

    def __iter__(self) -> Any:
        return one_ahead(super().__iter__())


class _EpochOrder(TrainerCallback):
    """Sets the epoch of the batch sampler, also after resuming."""

    def __init__(self, batches: StepBatches) -> None:
        self.batches = batches

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.batches.start_epoch(state.global_step // self.batches.steps)


class _EvaluationPerEpoch(TrainerCallback):
    """Evaluates with the last step of an epoch.

    Trainer would do so after it, when a checkpoint of that step is written already: a run that is resumed from there
    would never have that evaluation.
    """

    def __init__(self, batches: StepBatches) -> None:
        self.batches = batches

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.batches.steps == 0 or state.global_step >= state.max_steps:
            control.should_evaluate = True


class _NothingLeft(Exception):
    """The checkpoint that a run is resumed from is its last; weights and optimiser are loaded."""


class _LastStep(TrainerCallback):
    """Logs the last step, whatever `log_every` is; a run that has taken it takes none when it is resumed."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # Trainer would take another one where the last step is not the last of an epoch.
        if state.global_step >= state.max_steps:
            raise _NothingLeft

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True


class _EarlyStopping(TrainerCallback):
    """Stops after `patience` evaluations without a better one, counted in the log, which a resumed run continues.

    Those before the adaptation's last phase do not count: while weights are frozen, standing still is no sign.
    """

    def __init__(self, patience: int, best_by: str, starts: Callable[[TrainerState], Sequence[float]]) -> None:
        self.patience = patience
        self.best_by = best_by
        self.starts = starts

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._is_used_up(state):  # the run had stopped before it was interrupted
            raise _NothingLeft

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._is_used_up(state):
            control.should_training_stop = True

    def _is_used_up(self, state: Any) -> bool:
        begins = self.starts(state)[-1]
        scores = [score for step, score in scores_of(state.log_history, self.best_by).items() if step > begins]
        return bool(scores) and len(scores) - 1 - scores.index(max(scores)) >= self.patience


class _BestOfPhase(TrainerCallback):
    """Begins each phase of an adaptation but the first with the best weights so far.

    Those at the end of a phase are evaluated too, so that what a phase shorter than `evaluate_every` learns is kept.
    Whether a phase begins at a step follows from the log, so that a run that is resumed at that step does the same.
    """

    def __init__(self, starts: Callable[[TrainerState], Sequence[float]], take_best: Callable[[], None]) -> None:
        self.starts = starts
        self.take_best = take_best

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._begins_now(state):
            self.take_best()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._begins_now(state):
            control.should_evaluate = control.should_save = True

    def _begins_now(self, state: Any) -> bool:
        """Whether a phase other than the first begins with the next step."""
        step, starts = state.global_step, self.starts(state)
        return step > 0 and any(has_begun(start, step) and not has_begun(start, step - 1) for start in starts)


def _require_names(objective: Objective, source: str, entries: Mapping[str, Any]) -> None:
    if set(entries) != set(objective.weights):
        raise DistilError(
            f"{type(objective).__name__}.{source} returns {sorted(entries)}, but its weights name "
            f"{sorted(objective.weights)}; return one entry per weight"
        )


def _masks_of(objective: Objective, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The masks of a batch, checked, because objectives may be user code.

    Raises:
        DistilError: A name is missing, or a mask is not one boolean per window.
    """
    masks = objective.masks(batch)
    _require_names(objective, "masks", masks)
    for name, mask in masks.items():
        if mask.dtype != torch.bool or mask.shape != batch["weight"].shape:
            raise DistilError(
                f"{type(objective).__name__}.masks returns a {mask.dtype} tensor of shape {tuple(mask.shape)} for "
                f"{name!r}; return one boolean per window, shape ({len(batch['weight'])},)"
            )
    return masks


def _check_terms(objective: Objective, terms: dict[str, LossTerm], batch: dict[str, Tensor]) -> None:
    """Check the terms of the first batch, because objectives may be user code.

    Raises:
        DistilError: Their names, shapes or masks differ from what the objective declares.
    """
    kind, n = type(objective).__name__, len(batch["weight"])
    masks = objective.masks(batch)
    _require_names(objective, "forward", terms)
    for name, term in terms.items():
        if not isinstance(term, LossTerm):
            raise DistilError(f"{kind}.forward returns a {type(term).__name__} for {name!r}; return a LossTerm")
        if term.values.shape != (n,) or term.mask.shape != (n,):
            shapes = f"{tuple(term.values.shape)} and {tuple(term.mask.shape)}"
            raise DistilError(
                f"values and mask of {kind}'s term {name!r} have the shapes {shapes}; return one value per window, "
                f"({n},): reduce over tokens, not over windows"
            )
        if not torch.equal(term.mask.bool(), masks[name].bool()):
            raise DistilError(
                f"{kind}.forward and {kind}.masks differ in which windows have the term {name!r}; return the same "
                "masks from both"
            )


def _arguments(
    settings: TrainingSettings,
    directory: Path,
    device: torch.device,
    precision: str,
    has_dev: bool,
    unused: bool,
) -> Any:
    evaluate = settings.evaluation_interval if has_dev else None
    checkpoint = settings.checkpoint_interval
    return training_arguments(
        output_dir=str(directory),
        num_train_epochs=settings.n_epochs,
        max_steps=settings.max_steps or -1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=TRAINER_SCHEDULES.get(settings.learning_rate_schedule, "linear"),
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        max_grad_norm=settings.max_grad_norm,
        weight_decay=settings.weight_decay,
        seed=settings.seed,
        optim="adamw_torch_fused" if device.type in ("cpu", "cuda") else "adamw_torch",
        use_cpu=device.type == "cpu",
        # bf16 needs only autocast (in compute_loss); fp16 needs scaled gradients too, which Trainer provides.
        fp16=precision == "fp16",
        eval_strategy="steps" if isinstance(evaluate, int) else "no",  # per epoch: see `_EvaluationPerEpoch`
        eval_steps=evaluate if isinstance(evaluate, int) else None,
        save_strategy=_strategy(checkpoint),
        save_steps=checkpoint if isinstance(checkpoint, int) else 500,
        save_total_limit=None,  # `Checkpoints` removes them: Trainer would also delete those that are not of this run
        logging_steps=settings.log_every,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        remove_unused_columns=False,
        ddp_find_unused_parameters=unused,
    )


def _strategy(every: int | str | None) -> str:
    return "no" if every is None else "epoch" if every == "epoch" else "steps"


def _tensorboard(directory: Path) -> TrainerCallback:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise DistilError("tensorboard=True needs the package tensorboard; pip install tensorboard") from error
    from transformers.integrations import TensorBoardCallback

    return TensorBoardCallback(tb_writer=SummaryWriter(log_dir=str(directory)))


# Of modules that drop by themselves.
_DROPOUTS = ("dropout_prob", "attention_dropout", "activation_dropout", "dropout", "recurrent_dropout")
_LAYER_DROP = "layerdrop"  # the probability that a layer is skipped: 0 without dropout, otherwise the model's own


@contextlib.contextmanager
def _dropout(model: nn.Module, probability: float | Literal["auto"] | None) -> Iterator[None]:
    """Set all dropout probabilities of a model, those of attention kernels included, and restore them afterwards.

    None leaves them as they are; so does "auto" for a model that declares `own_dropout`. For others it is 0.
    """
    if probability == "auto":
        probability = None if getattr(model, "own_dropout", False) else 0.0
    if probability is None:
        yield
        return
    of_modules = _DROPOUTS if probability else (*_DROPOUTS, _LAYER_DROP)
    before: list[tuple[nn.Module, str, Any]] = []
    for module in model.modules():
        names = ("p",) if isinstance(module, nn.Dropout) else of_modules
        found = [(module, name, getattr(module, name, None)) for name in names]
        before += [entry for entry in found if type(entry[2]) in (float, int)]  # an int: 0 in ALBERT's configurations
    for module, name, _ in before:
        setattr(module, name, probability)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
