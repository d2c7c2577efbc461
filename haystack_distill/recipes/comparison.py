"""A comparison as data: its arms, each a list of a recipe's stages, and what all of them share.

An arm decides how the student is taught, never for how long: all arms have the same number of optimiser steps, which an
arm of several stages divides among them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haystack_distill.data.window_settings import WindowSettings
from haystack_distill.errors import DistilError
from haystack_distill.training.methods import METHODS
from haystack_distill.training.settings import TrainingSettings
from haystack_distill.utils.checks import PRECISIONS, Precision, check_argument, is_integer, is_number, require_seed
from haystack_distill.utils.yaml_config import read_mapping

if TYPE_CHECKING:  # the command line reads the options here, and its help must not wait for torch
    from haystack_distill.recipes.schema import Recipe

RECIPE_FILES = (".yaml", ".yml")
STEPS = "compare's max_steps"  # where the length of a stage comes from, in messages
_LENGTHS = ("n_epochs", "max_steps")  # of a stage in a recipe; an arm has shares
_KEPT_BEST = ("keep_best", "best_by")  # chosen on the dev questions, on which the arms are compared
_METHOD = re.compile(r"(?:(?P<weight>[^*()]+)\*)?(?P<name>\w+)(?:\((?P<options>[^()]*)\))?")
_OUTSIDE_BRACKETS = r"(?![^()]*\))"


@dataclass(frozen=True)
class Arm:
    """One way of teaching the student.

    Attributes:
        name: Its name in tables.
        stages: Its stages as a recipe file has them, every value as text; in place of `n_epochs` and `max_steps` a
            stage may have `share`, its share of the steps.
        grid: Values to choose from by name of an option, besides those of the comparison.
        recipe: The recipe file that the stages are from, whose lengths decide the shares. What it has of `keep_best` is
            left out: it would choose on the questions that all arms are measured on.

    Raises:
        DistilError: An option of the grid has no values.
    """

    name: str
    stages: tuple[Mapping[str, Any], ...]
    grid: Mapping[str, Sequence[str]] = field(default_factory=dict)
    recipe: str | None = None

    def __post_init__(self) -> None:
        _require_values(self.grid, f"arm {self.name}: ")
        for stage in self.stages:
            student = stage.get("student")
            if isinstance(student, Mapping) and "layers" in student:
                raise DistilError(
                    f"arm {self.name}: a stage makes a student of {student['layers']} layers, and not the one that the "
                    "other arms train; run its recipe by itself, and compare the readers with haystack-distill report"
                )

    @property
    def directory(self) -> str:
        """The name as the name of a directory."""
        return re.sub(r"[^A-Za-z0-9._]+", "-", self.name).strip("-.") or "arm"

    def shares(self) -> list[float]:
        """The share of the steps of each stage: as given; what is left is divided evenly among the others.

        Raises:
            DistilError: A share is not a number from 0 to 1, or the shares do not add up to 1.
        """
        given = [_share(self.name, stage["share"]) if "share" in stage else None for stage in self.stages]
        left = 1 - sum(share for share in given if share is not None)
        others = given.count(None)
        if (others and left <= 1e-6) or (not others and abs(left) > 1e-6):
            raise DistilError(f"arm {self.name}: the shares of its stages must add up to 1; correct them")
        return [left / others if share is None else share for share in given]

    def steps(self, total: int, shares: Sequence[float] | None = None) -> list[int]:
        """The optimiser steps of each stage, which add up to `total`, by the largest remainders.

        Args:
            total: The steps of the whole arm.
            shares: Shares other than its own.

        Raises:
            DistilError: There are more stages than steps.
        """
        if total < len(self.stages):
            raise DistilError(f"arm {self.name}: {len(self.stages)} stages need as many steps; raise max_steps")
        exact = [share * total for share in shares or self.shares()]
        steps = [max(1, int(one)) for one in exact]  # each stage has one at least
        while sum(steps) != total:
            change = 1 if sum(steps) < total else -1
            open_to_it = [number for number in range(len(steps)) if steps[number] + change >= 1]
            steps[max(open_to_it, key=lambda number: change * (exact[number] - steps[number]))] += change
        return steps

    def chosen(self, values: Mapping[str, str]) -> Arm:
        """The arm with values of a grid; where a stage or a method sets an option itself, its own value stays."""
        return Arm(self.name, tuple(_with_values(stage, values) for stage in self.stages), recipe=self.recipe)

    def candidates(self, grid: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
        """All combinations of the values of a grid and of the arm's own that change this arm.

        Args:
            grid: The comparison's grid. Options that this arm does not have are left out.

        Raises:
            DistilError: The arm's own grid has an option that no stage takes, or all set themselves.
        """
        taken = {name: values for name, values in grid.items() if self._takes(name)} | dict(self.grid)
        for name in self.grid:
            if not self._takes(name):
                raise DistilError(f"arm {self.name}: grid: no stage takes {name}, or all set it; leave out one of them")
        return [dict(zip(taken, values, strict=True)) for values in itertools.product(*taken.values())] if taken else []

    def _takes(self, name: str) -> bool:
        return any(_with_values(stage, {name: "?"}) != stage for stage in self.stages)


def arm_from_text(text: str) -> Arm:
    """An arm in short: a method, a weighted sum of methods, or the path of a recipe file.

    Args:
        text: `labels`, `prediction_layer(temperature=2)`, `0.8*prediction_layer+0.2*intermediate_layers`,
            `1:0*intermediate_layers+0:1*prediction_layer` (weights that change linearly) or a path that ends in .yaml.

    Raises:
        DistilError: It is none of these, or an unknown method.
    """
    text = text.strip()
    if text.endswith(RECIPE_FILES):
        return _arm_from_recipe(Path(text).stem, text)
    parts = [_method(text, part.strip()) for part in re.split(r"\+" + _OUTSIDE_BRACKETS, text)]
    alone = len(parts) == 1 and not parts[0].keys() & {"weight", "final_weight"}
    return Arm(text, ({"name": "train", "method": parts[0] if alone else parts},))


def arms_from_text(text: str) -> list[Arm]:
    """The arms of a list with commas between them; commas in brackets separate the options of a method."""
    return [arm_from_text(part) for part in re.split("," + _OUTSIDE_BRACKETS, text) if part.strip()]


def load_arms(path: str | Path) -> list[Arm]:
    """Read a YAML file of arms by name.

    An arm is a text as for `arm_from_text`, a stage (a mapping with `method`), a list of stages, or a mapping with
    `stages` or `recipe` (a recipe file). A mapping may have a `grid` of its own.

    Raises:
        DistilError: The file cannot be read, or an arm is none of these.
    """
    content = read_mapping(Path(path))
    if not content:
        raise DistilError(f"{path}: there are no arms in it; write NAME: METHOD, or NAME: with a list of stages")
    arms = []
    for name, given in content.items():
        try:
            arms.append(_arm_from_content(str(name), given))
        except DistilError as error:
            raise DistilError(f"{path}: {error}") from error
    return arms


def _arm_from_content(name: str, content: Any) -> Arm:
    grid: Mapping[str, Any] = {}
    if isinstance(content, Mapping) and "grid" in content:
        grid = content["grid"]
        if not isinstance(grid, Mapping):
            raise DistilError(f"arm {name}: grid must map options to lists of values, like learning_rate: [1e-4, 3e-4]")
        grid = {str(key): values if isinstance(values, list) else [values] for key, values in grid.items()}
        content = {key: value for key, value in content.items() if key != "grid"}
    if isinstance(content, Mapping) and content.keys() in ({"stages"}, {"recipe"}):
        (kind, content), *_ = content.items()
        if kind == "recipe":
            made = _arm_from_recipe(name, str(content))
            return Arm(name, made.stages, grid, made.recipe)
    if isinstance(content, str):
        made = arm_from_text(content)
        return Arm(name, made.stages, grid, made.recipe)
    stages = content if isinstance(content, list) else [content]
    if not stages or not all(isinstance(stage, Mapping) and "method" in stage for stage in stages):
        raise DistilError(
            f"arm {name}: must be a method, a stage (method: ...), a list of stages, or have `stages` or `recipe`; "
            "write it as one of these"
        )
    for stage in stages:
        for length in _LENGTHS:
            if length in stage:
                raise DistilError(f"arm {name}: {length} is not for an arm, whose length is {STEPS}; write share: 0.5")
    named = [{"name": f"stage-{number}"} | dict(stage) for number, stage in enumerate(stages, start=1)]
    return Arm(name, tuple(named), grid)


def _arm_from_recipe(name: str, path: str) -> Arm:
    content = read_mapping(Path(path))
    stages = content.get("stages")
    if not isinstance(stages, list) or not all(isinstance(stage, Mapping) for stage in stages):
        raise DistilError(f"{path}: is not a recipe, because it has no list of stages; give a recipe file")
    for number, stage in enumerate(stages, start=1):
        if "method" not in stage:
            raise DistilError(f"{path}: stage {stage.get('name', number)}: method is missing; add it")
    kept = [{key: value for key, value in stage.items() if key not in _KEPT_BEST} for stage in stages]
    return Arm(name, tuple(kept), recipe=path)


def _method(text: str, part: str) -> dict[str, Any]:
    """`0.8*prediction_layer(temperature=2)` as a recipe file has it."""
    found = _METHOD.fullmatch(part)
    if found is None:
        raise DistilError(
            f"--methods {text}: {part!r} is no method; write NAME, WEIGHT*NAME or NAME(option=value), with + between "
            "the methods of a sum"
        )
    METHODS.options(found["name"])  # an unknown name is refused
    first, colon, last = (found["weight"] or "").strip().partition(":")
    method = {"name": found["name"]} | ({"weight": first} if first else {}) | ({"final_weight": last} if colon else {})
    for option in filter(None, (found["options"] or "").split(",")):
        name, equals, value = option.partition("=")
        if not equals:
            raise DistilError(f"--methods {text}: {option.strip()!r} has another form; write OPTION=VALUE")
        method[name.strip()] = value.strip()
    return method


def _require_values(grid: Mapping[str, Sequence[str]], place: str = "") -> None:
    for name, values in grid.items():
        if not values:
            raise DistilError(f"{place}grid: {name} has no values; give at least one, or leave it out")


def _share(arm: str, value: Any) -> float:
    try:
        share = float(value)
    except (TypeError, ValueError):
        share = -1.0
    if not 0 < share <= 1:
        raise DistilError(f"arm {arm}: share must be a number above 0 and at most 1, not {value!r}; correct it")
    return share


def _with_values(stage: Mapping[str, Any], values: Mapping[str, str]) -> dict[str, Any]:
    """A stage with settings and options of its methods; those that it has stay."""
    settings = {name: value for name, value in values.items() if name in _SETTINGS and name not in stage}
    method = stage["method"]
    parts = [_method_with_values(part, values) for part in (method if isinstance(method, list) else [method])]
    return {**stage, **settings, "method": parts if isinstance(method, list) else parts[0]}


def _method_with_values(method: Any, values: Mapping[str, str]) -> Any:
    name = method.get("name") if isinstance(method, Mapping) else method
    if not isinstance(name, str) or name not in METHODS:
        return method  # the recipe's schema refuses it
    given = method if isinstance(method, Mapping) else {"name": method}
    known = {option.name for option in METHODS.options(name)}
    own = {option: value for option, value in values.items() if option in known and option not in given}
    return {**given, **own} if own else method


_OF_THE_RUN = {"seed", "precision", "resume", "overwrite", "progress"}
_SETTINGS = frozenset(TrainingSettings.names()) - {*_LENGTHS, *_KEPT_BEST, "early_stopping_patience", *_OF_THE_RUN}


@dataclass(frozen=True)
class Comparison:
    """Ways of teaching the same student, with equal optimiser steps.

    Args:
        teacher: The reader to learn from: a directory, a hub name or "embedded".
        data: Training data, as for a recipe.
        dev_data: What all readers are measured on; never trained on.
        output_dir: Where everything goes.
        arms: The ways of teaching.
        student: The reader that all arms start from; None for one that is cut from the teacher.
        layers: Layers of the teacher that the student is cut to, where no student is given.
        n_seeds: How many students each arm trains, with seeds from `seed` on.
        seed: The first seed, also that of the choice of questions.
        max_steps: Optimiser steps of each student, all stages together; None for as many as `n_epochs` have.
        n_epochs: Passes over the questions, where `max_steps` does not set the length.
        settings: Settings of training by name that all stages share, as text; a stage's own come before them.
        questions: How many training questions are used, drawn at random by `seed`; None for all.
        dev_questions: How many dev questions are used, the first ones; None for all.
        grid: Values to choose from by name of a setting or of an option of a method. Each arm chooses among those that
            it has, with its first seed, by F1 on held-out articles of the training questions.
        held_out: Share of the training questions, by article, that choices are made on.
        baseline: The arm that the others are compared with; None for `labels` where there is such an arm, else for the
            first one.
        time_steps: Optimiser steps that each arm is timed for at the end, all arms one after the other; None for none,
            which is enough where one call trains all students without a stop.
        parallel: How many students, and candidates of a grid, are trained at the same time, each by a process of its
            own. A small student leaves most of a GPU idle, so several can share it; on a processor they share its
            cores. They have no progress bars, and what they took is measured by `time_steps` alone.
        int8: Whether the teacher is also measured as exported to ONNX in int8, the cheapest alternative.
        keep_readers: Whether each arm's reader is kept; else figures alone are.
        windows: How questions and contexts become windows.
        precision: "auto", "fp32", "bf16" or "fp16".
        device: "auto", "cpu", "cuda", ...
        cache_dir: Where windows and teacher outputs are kept.

    Raises:
        DistilError: A value that cannot be, or two arms of one name.
    """

    teacher: str
    data: list[str]
    dev_data: list[str]
    output_dir: str
    arms: list[Arm]
    student: str | None = None
    layers: int | None = None
    n_seeds: int = 1
    seed: int = TrainingSettings.seed
    max_steps: int | None = None
    n_epochs: int = 3
    settings: Mapping[str, str] = field(default_factory=dict)
    questions: int | None = None
    dev_questions: int | None = None
    grid: Mapping[str, Sequence[str]] = field(default_factory=dict)
    held_out: float = 0.1
    baseline: str | None = None
    time_steps: int | None = None
    parallel: int = 1
    int8: bool = True
    keep_readers: bool = True
    windows: WindowSettings = field(default_factory=WindowSettings)
    precision: Precision = TrainingSettings.precision
    device: str = "auto"
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        if not self.arms:
            raise DistilError("there is nothing to compare; give at least one arm")
        names = [arm.name for arm in self.arms]
        for one, other in itertools.combinations(self.arms, 2):
            if one.name == other.name or one.directory == other.directory:
                raise DistilError(f"two arms are called {other.name}; give each a name of its own")
        if self.student is not None and self.layers is not None:
            raise DistilError("student and layers are two ways to make the student; give one")
        for name in ("n_seeds", "n_epochs", "parallel"):
            value = getattr(self, name)
            check_argument(name, value, is_integer(value, 1), "a whole number of at least 1")
        for name in ("max_steps", "questions", "dev_questions", "layers", "time_steps"):
            value = getattr(self, name)
            check_argument(name, value, value is None or is_integer(value, 1), "a whole number of at least 1, or None")
        share = self.held_out
        check_argument("held_out", share, is_number(share) and 0 < share < 1, "a number between 0 and 1")
        check_argument("precision", self.precision, self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        require_seed(self.seed)
        for name in self.settings:
            check_argument("settings", name, name in _SETTINGS, f"one of {', '.join(sorted(_SETTINGS))}")
        _require_values(self.grid)
        if self.held_out != Comparison.held_out and not (self.grid or any(arm.grid for arm in self.arms)):
            raise DistilError("held_out has an effect with a grid only; give a grid, or leave it out")
        for name in self.grid:
            if name in self.settings:
                raise DistilError(
                    f"{name} is set to {self.settings[name]} for all arms, and the grid has values of it too; leave "
                    "one of them out"
                )
            if not any(name in candidate for arm in self.arms for candidate in arm.candidates({name: ["?"]})):
                raise DistilError(f"grid: no arm takes {name}, or all set it themselves; correct it, or leave it out")
        if self.baseline is not None and self.baseline not in names:
            raise DistilError(f"baseline: there is no arm {self.baseline!r}; there are {', '.join(names)}")

    @property
    def seeds(self) -> list[int]:
        """The seeds of each arm's students."""
        return [self.seed + number for number in range(self.n_seeds)]

    @property
    def compared_with(self) -> str:
        """The name of the arm that the others are compared with."""
        names = [arm.name for arm in self.arms]
        return self.baseline or ("labels" if "labels" in names else names[0])

    def recipe(
        self, arm: Arm, seed: int, steps: Sequence[int], output_dir: Path, data: list[str], dev_data: list[str]
    ) -> tuple[dict[str, Any], Recipe]:
        """The recipe of one student: as the content of its file, and read.

        Args:
            arm: The arm, its values chosen.
            seed: The student's seed.
            steps: The optimiser steps of each stage.
            output_dir: The student's directory.
            data: The questions to train on.
            dev_data: The questions to measure on.

        Raises:
            DistilError: Something is wrong with the arm; the message begins with its name.
        """
        from haystack_distill.recipes.schema import recipe_from

        student = {"start_from": self.student} if self.student else {"layers": self.layers} if self.layers else None
        stages = []
        for stage, n_steps in zip(arm.stages, steps, strict=True):
            own = {key: value for key, value in stage.items() if key not in ("share", *_LENGTHS)}
            adaptation = own.get("adaptation")
            chosen_on_dev = [key for key in _KEPT_BEST if key in own]
            if isinstance(adaptation, Mapping) and "phase_patience" in adaptation:
                chosen_on_dev.append("phase_patience")
            if chosen_on_dev:
                raise DistilError(
                    f"arm {arm.name}: {chosen_on_dev[0]} would choose on the dev questions that all arms are measured "
                    "on; leave it out"
                )
            if "early_stopping_patience" in own:
                raise DistilError(
                    f"arm {arm.name}: early_stopping_patience would make its length differ from that of the others; "
                    "leave it out"
                )
            stages.append({"name": own.pop("name", "train")} | dict(self.settings) | own | {"max_steps": n_steps})
        content = {
            "teacher": self.teacher,
            "data": data,
            "dev_data": dev_data,
            "output_dir": str(output_dir),
            **({"student": student} if student else {}),
            "seed": seed,
            "precision": self.precision,
            "device": self.device,
            **({"cache_dir": self.cache_dir} if self.cache_dir else {}),
            **vars(self.windows),
            "stages": stages,
        }
        text = _as_text(content)
        return text, recipe_from(text, f"arm {arm.name}")


def _as_text(value: Any) -> Any:
    """Nested values as a YAML file that was read has them: text."""
    if isinstance(value, Mapping):
        return {str(key): _as_text(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_text(entry) for entry in value]
    if isinstance(value, bool):
        return "true" if value else "false"
    return "none" if value is None else str(value)


def students_of(comparison: Comparison) -> Iterator[tuple[Arm, int]]:
    """Arm and seed of each student, in the order in which they are trained: all arms with one seed, then the next."""
    for seed in comparison.seeds:
        for arm in comparison.arms:
            yield arm, seed
