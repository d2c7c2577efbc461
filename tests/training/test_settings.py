"""TrainingSettings refuses what cannot be."""

from dataclasses import fields
from typing import Any

import pytest

from haystack_distill import DistilError, TrainingSettings


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("n_epochs", [0, -1, 1.5, True]),
        ("batch_size", [0, 2.0]),
        ("gradient_accumulation_steps", [0]),
        ("keep_checkpoints", [0]),
        ("log_every", [0]),
        ("evaluate_every", [0, "step", 0.5, True]),
        ("checkpoint_every", [0, "never"]),
        ("max_steps", [0, "100", 10.0, True]),
        ("learning_rate", [0, -1e-5, float("nan"), float("inf"), "3e-4", None, True, [3e-4]]),
        ("max_grad_norm", [-1.0, float("nan"), "1.0", None, True]),
        ("weight_decay", [-0.1, float("inf"), "0.01", None, False]),
        ("warmup_proportion", [-0.1, 1.0, "0.1", None, False]),
        ("dropout", [-0.1, 1.0, "0.1", False]),
        ("seed", [-1, 2**32, "42", 1.5, None, True]),
        *((name, ["false", None, 1]) for name in ("keep_best", "resume", "overwrite", "tensorboard", "progress")),
        ("precision", ["float32", None]),
        ("early_stopping_patience", [0, 1.5]),
        ("best_by", ["exact", None]),
        ("learning_rate_schedule", ["step", None]),
        ("optimizer", ["sgd", None]),
        ("n_cycles", [1, 2.0, True]),
        ("layer_decay", [0, 1.1, None]),
        *((f"{part}_learning_rate", [0, "1e-3", float("nan")]) for part in ("embedding", "head", "projection")),
    ],
)
def test_bad_values_are_named(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(DistilError, match=f"^{name} must be .*, not "):
            TrainingSettings(**{name: value})


def test_values_at_the_edge_are_taken() -> None:
    TrainingSettings(max_grad_norm=float("inf"), seed=0, learning_rate=1)
    TrainingSettings(seed=2**32 - 1)
    TrainingSettings(max_grad_norm=0, weight_decay=0, warmup_proportion=0, dropout=None, evaluate_every=1)
    TrainingSettings(checkpoint_every=None, evaluate_every=None, early_stopping_patience=None)
    TrainingSettings(keep_best=True, evaluate_every=7, checkpoint_every=7, early_stopping_patience=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"early_stopping_patience": 2}, "early_stopping_patience needs keep_best=True"),
        ({"n_cycles": 2}, "n_cycles belongs to learning_rate_schedule='cyclic'; give both or none"),
        ({"learning_rate_schedule": "cyclic"}, "give both or none"),
        ({"best_by": "loss", "evaluate_every": None}, "best_by='loss' has no effect with evaluate_every=None"),
        (
            {"early_stopping_patience": 2, "keep_best": True, "evaluate_every": None},
            "needs keep_best=True and evaluate",
        ),
        ({"keep_best": True, "evaluate_every": None}, "keep_best needs evaluate_every"),
        ({"keep_best": True, "checkpoint_every": 5}, "checkpoint_every=5 has no effect with keep_best"),
        (
            {"keep_best": True, "evaluate_every": 5, "checkpoint_every": "epoch"},
            "checkpoint_every='epoch' has no effect",
        ),
        (
            {"keep_best": True, "evaluate_every": 5, "checkpoint_every": None},
            "checkpoint_every=None has no effect with keep_best",
        ),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DistilError, match=message):
        TrainingSettings(**settings)


def test_intervals() -> None:
    plain, best = TrainingSettings(), TrainingSettings(keep_best=True, evaluate_every=7)
    assert (plain.evaluation_interval, plain.checkpoint_interval) == ("epoch", "epoch")
    assert (best.evaluation_interval, best.checkpoint_interval) == (7, 7)
    assert TrainingSettings(evaluate_every=None).evaluation_interval is None


@pytest.mark.parametrize(
    "settings",
    [
        {"evaluate_every": "epoch"},
        {"evaluate_every": 3},
        {"keep_best": True},
        {"keep_best": True, "early_stopping_patience": 1},
    ],
)
def test_settings_without_effect_where_nothing_is_measured(settings: dict[str, Any]) -> None:
    with pytest.raises(DistilError, match=rf"{next(iter(settings))} has no effect without dev_data; give dev_data"):
        TrainingSettings(**settings).require_nothing_measured()
    TrainingSettings(evaluate_every=None).require_nothing_measured()
    TrainingSettings().require_nothing_measured()


def test_names_are_the_fields() -> None:
    assert TrainingSettings.names() == [field.name for field in fields(TrainingSettings)]


def test_every_setting_is_documented() -> None:
    assert TrainingSettings.__doc__
    assert all(f"        {name}: " in TrainingSettings.__doc__ for name in TrainingSettings.names())
