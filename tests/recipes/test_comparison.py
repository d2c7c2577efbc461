"""A comparison as data: how arms are written, how they divide the steps, what a grid changes."""

from pathlib import Path
from typing import Any

import pytest

from haystack_distill import DistilError
from haystack_distill.objectives import IntermediateLayers, Linear, PredictionLayer
from haystack_distill.objectives.method import MethodSum
from haystack_distill.recipes.comparison import Arm, Comparison, arm_from_text, arms_from_text, load_arms, students_of


def comparison(arms: list[Arm], **changed: Any) -> Comparison:
    given = {"teacher": "t", "data": ["train.json"], "dev_data": ["dev.json"], "output_dir": "out"}
    return Comparison(**given | {"arms": arms} | changed)


def test_arms_in_short(tmp_path: Path) -> None:
    labels, soft, both = arms_from_text(
        "labels, prediction_layer(temperature=2, distillation_loss_weight=0.8),0.5*intermediate_layers+prediction_layer"
    )
    assert labels == Arm("labels", ({"name": "train", "method": {"name": "labels"}},))
    assert soft.stages[0]["method"] == {
        "name": "prediction_layer",
        "temperature": "2",
        "distillation_loss_weight": "0.8",
    }
    assert soft.directory == "prediction_layer-temperature-2-distillation_loss_weight-0.8"
    assert both.stages[0]["method"] == [{"name": "intermediate_layers", "weight": "0.5"}, {"name": "prediction_layer"}]
    content, recipe = comparison([both]).recipe(both, 1, [7], tmp_path, ["a.json"], ["b.json"])
    method = recipe.stages[0].method
    assert isinstance(method, MethodSum)
    assert [weight for weight, _ in method.parts] == [0.5, 1.0]
    assert (recipe.seed, recipe.data, recipe.dev_data) == (1, ["a.json"], ["b.json"])
    assert recipe.stages[0].settings.max_steps == 7
    assert content["stages"][0]["max_steps"] == "7"


def test_weights_that_change(tmp_path: Path) -> None:
    changing = arm_from_text("1:0*intermediate_layers+0:1*prediction_layer")
    recipe = comparison([changing]).recipe(changing, 1, [2], tmp_path, ["a"], ["b"])[1]
    assert recipe.stages[0].method == Linear(1, 0) * IntermediateLayers() + Linear(0, 1) * PredictionLayer()


@pytest.mark.parametrize(
    ("text", "weight"), [("10*intermediate_layers", 10.0), ("0:2*intermediate_layers", Linear(0, 2))]
)
def test_one_method_with_a_weight(text: str, weight: float | Linear, tmp_path: Path) -> None:
    arm = arm_from_text(text)
    method = comparison([arm]).recipe(arm, 1, [2], tmp_path, ["a"], ["b"])[1].stages[0].method
    assert isinstance(method, MethodSum)
    assert method.parts == ((weight, IntermediateLayers()),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("predction_layer", "did you mean 'prediction_layer'"),
        ("0.8*", "is no method; write NAME"),
        ("labels(x)", "write OPTION=VALUE"),
        ("absent.yaml", "absent.yaml: cannot be read"),
    ],
)
def test_arms_that_are_none(text: str, message: str) -> None:
    with pytest.raises(DistilError, match=message):
        arm_from_text(text)


def test_a_file_of_arms(tmp_path: Path) -> None:
    path = tmp_path / "arms.yaml"
    (tmp_path / "recipe.yaml").write_text(
        "teacher: t\nstages: [{name: a, method: labels, n_epochs: 3, keep_best: true}]\n"
    )
    path.write_text(
        "labels: labels\n"
        "one: {method: prediction_layer, learning_rate: 1e-3}\n"
        "two: [{method: intermediate_layers, share: 0.7}, {name: end, method: prediction_layer}]\n"
        f"three: {{recipe: {tmp_path / 'recipe.yaml'}, grid: {{learning_rate: [1e-4, 3e-4]}}}}\n"
        "four: {stages: [{method: labels}], grid: {batch_size: 8}}\n"
    )
    labels, one, two, three, four = load_arms(path)
    assert "keep_best" not in three.stages[0]
    assert (labels.name, labels.stages) == ("labels", arm_from_text("labels").stages)
    assert one.stages == ({"name": "stage-1", "method": "prediction_layer", "learning_rate": "1e-3"},)
    assert [stage["name"] for stage in two.stages] == ["stage-1", "end"]
    assert (three.recipe, three.grid) == (str(tmp_path / "recipe.yaml"), {"learning_rate": ["1e-4", "3e-4"]})
    assert four.grid == {"batch_size": ["8"]}
    for content, message in [
        ("", "no arms in it"),
        ("a: 3", "unknown method '3'"),
        ("a: [labels]", "arm a: must be a method"),
        ("a: {method: labels, n_epochs: 2}", "arm a: n_epochs is not for an arm"),
        ("a: {method: labels, grid: [1]}", "arm a: grid must map options"),
        (
            "a: [{name: b, method: labels}, {name: c, method: labels, student: {made_from: b, layers: 2}}]",
            "arm a: a stage makes a student of 2 layers, and not the one",
        ),
        ("a: {method: labels, grid: {learning_rate: []}}", "arm a: grid: learning_rate has no values"),
    ]:
        path.write_text(content)
        with pytest.raises(DistilError, match=message):
            load_arms(path)
    path.write_text("a: {method: {name: [labels]}}")
    assert load_arms(path)[0].candidates({"temperature": ["2"]}) == []  # and the recipe's schema refuses the name
    (tmp_path / "recipe.yaml").write_text("teacher: t\nstages: [{name: a, method: labels}, {name: b}]\n")
    with pytest.raises(DistilError, match=r"recipe\.yaml: stage b: method is missing; add it"):
        arm_from_text(str(tmp_path / "recipe.yaml"))


def arm(*shares: float | None) -> Arm:
    stages = [
        {"name": f"s{number}", "method": "labels"} | ({} if share is None else {"share": str(share)})
        for number, share in enumerate(shares)
    ]
    return Arm("a", tuple(stages))


def test_stages_divide_the_steps() -> None:
    assert arm(None).steps(5) == [5]
    assert arm(None, None).steps(5) == [3, 2]
    assert arm(0.5, None, None).shares() == [0.5, 0.25, 0.25]
    assert arm(2 / 3, 1 / 3).steps(1035) == [690, 345]
    for total in range(3, 40):
        steps = arm(0.01, 0.9, None).steps(total)
        assert sum(steps) == total
        assert min(steps) >= 1
    assert arm(None, None).steps(10, [0.85, 0.15]) == [9, 1]
    with pytest.raises(DistilError, match="arm a: 2 stages need as many steps"):
        arm(None, None).steps(1)
    for shares in [(0.5, 0.6), (0.5,), (1.0, None)]:
        with pytest.raises(DistilError, match="must add up to 1"):
            arm(*shares).shares()
    for share in (-1, 2, "half"):
        with pytest.raises(DistilError, match="share must be a number"):
            arm(share, None).shares()  # type: ignore[arg-type]


def test_a_grid_changes_what_an_arm_has_and_does_not_set() -> None:
    grid = {"temperature": ["1", "2"], "learning_rate": ["1e-4", "3e-4"]}
    labels, soft = arm_from_text("labels"), arm_from_text("labels+prediction_layer")
    fixed = arm_from_text("prediction_layer(temperature=3)")
    assert labels.candidates(grid) == [{"learning_rate": "1e-4"}, {"learning_rate": "3e-4"}]
    assert len(soft.candidates(grid)) == 4
    assert fixed.candidates(grid) == labels.candidates(grid)
    assert labels.candidates({}) == []
    chosen = soft.chosen({"temperature": "2", "learning_rate": "3e-4"}).stages[0]
    assert chosen["learning_rate"] == "3e-4"
    assert chosen["method"] == [{"name": "labels"}, {"name": "prediction_layer", "temperature": "2"}]
    own = Arm("own", labels.stages, {"temperature": ["1"]})
    with pytest.raises(DistilError, match="arm own: grid: no stage takes temperature"):
        own.candidates({})
    with pytest.raises(DistilError, match="grid: no arm takes temperature"):
        comparison([labels], grid=grid)
    comparison([labels, soft], grid=grid)


def test_what_a_comparison_refuses() -> None:
    labels, soft = arm_from_text("labels"), arm_from_text("prediction_layer")
    for changed, message in [
        ({"arms": []}, "nothing to compare"),
        ({"arms": [labels, labels]}, "two arms are called labels"),
        ({"student": "s", "layers": 2}, "give one"),
        ({"n_seeds": 0}, "n_seeds must be"),
        ({"questions": 0}, "questions must be"),
        ({"held_out": 1}, "held_out must be"),
        ({"held_out": "x"}, "held_out must be"),
        ({"held_out": None}, "held_out must be"),
        ({"settings": {"n_epochs": "3"}}, "settings must be"),
        ({"settings": {"keep_best": "true"}}, "settings must be"),
        ({"settings": {"early_stopping_patience": "3"}}, "settings must be"),
        ({"grid": {"learning_rate": []}}, "grid: learning_rate has no values"),
        ({"settings": {"learning_rate": "1e-4"}, "grid": {"learning_rate": ["1e-3"]}}, "learning_rate is set to 1e-4"),
        ({"baseline": "other"}, "there is no arm 'other'; there are labels"),
    ]:
        with pytest.raises(DistilError, match=message):
            comparison(**{"arms": [labels]} | changed)  # type: ignore[arg-type]
    stopping = Arm("s", ({"name": "a", "method": "labels", "early_stopping_patience": "1"},))
    with pytest.raises(DistilError, match="arm s: early_stopping_patience"):
        comparison([stopping]).recipe(stopping, 1, [1], Path("out"), ["a"], ["b"])
    unfrozen = {"name": "gradual_unfreezing", "phase_patience": "1"}
    for given in ({"keep_best": "true"}, {"best_by": "loss"}, {"adaptation": unfrozen}):
        choosing = Arm("c", ({"name": "a", "method": "labels", **given},))
        with pytest.raises(DistilError, match=r"arm c: .* would choose on the dev questions"):
            comparison([choosing]).recipe(choosing, 1, [1], Path("out"), ["a"], ["b"])
    wrong = Arm("w", ({"name": "a", "method": "labels", "learning_rat": "1"},))
    with pytest.raises(DistilError, match="arm w: stage a: unknown key 'learning_rat'; did you mean"):
        comparison([wrong]).recipe(wrong, 1, [1], Path("out"), ["a"], ["b"])
    assert comparison([soft, labels]).compared_with == "labels"
    assert comparison([soft]).compared_with == "prediction_layer"
    assert comparison([soft, labels], baseline="prediction_layer").compared_with == "prediction_layer"


def test_all_arms_with_one_seed_and_then_the_next() -> None:
    two = comparison(arms_from_text("labels,prediction_layer"), n_seeds=2, seed=5)
    assert [(one.name, seed) for one, seed in students_of(two)] == [
        ("labels", 5),
        ("prediction_layer", 5),
        ("labels", 6),
        ("prediction_layer", 6),
    ]
