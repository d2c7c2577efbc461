"""Settings that have no effect are refused; the function and the script have the same options as the dataclasses."""

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer

from augment.augment_squad import augment_squad, make_statistics
from augment.command import app
from augment.settings import AugmentSettings, RunSettings, parse_shard, settings_from
from haystack_distill import DistilError
from haystack_distill.utils.options import argument_help, options_of

NO_MASK = {"p_mask": 0}
OF_MODEL = {"word_possibilities": 5, "glove_path": "vectors.txt", "device": "cpu", "batch_size": 4}
NOTHING = "these settings edit nothing"


@pytest.mark.parametrize(
    ("name", "changed", "reason"),
    [
        *(
            (name, {"multiplication_factor": 1, name: value}, "with a multiplication_factor of 1")
            for name, value in {
                "augment": "question",
                "p_mask": 0.2,
                "p_pos": 0.2,
                "p_ng": 0.3,
                "longest_ngram": 3,
                "context_ngrams": True,
                "model": "m",
                "replace_probability": 0.3,
                "mask_token": "<mask>",
                "tokenizer": "t",
                "tagger": "textblob",
                "seed": 1,
                **OF_MODEL,
            }.items()
        ),
        ("context_ngrams", {"augment": "question", "context_ngrams": True}, "where only questions are edited"),
        ("p_ng", {"augment": "context", "p_ng": 0.3}, "where only contexts are edited, which are not cut"),
        (
            "longest_ngram",
            {"augment": "context", "longest_ngram": 3},
            "where only contexts are edited, which are not cut",
        ),
        ("context_ngrams", {"context_ngrams": True, "p_ng": 0}, "where p_ng is 0"),
        ("longest_ngram", {"augment": "both", "longest_ngram": 3, "p_ng": 0}, "where p_ng is 0"),
        ("p_pos", {"tagger": "none", "p_pos": 0.2}, "without a tagger"),
        ("tagger", {"tagger": "nltk", "p_pos": 0}, "where p_pos is 0"),
        ("mask_token", {"mask_token": "<mask>", **NO_MASK}, "where p_mask is 0"),
        ("tokenizer", {"tokenizer": "t", **NO_MASK}, "where p_mask is 0 and tagger is not none"),
        ("tokenizer", {"tokenizer": "t", "mask_token": "<mask>"}, "where mask_token is set and tagger is not none"),
        *((name, {name: value}, "without a masked language model") for name, value in OF_MODEL.items()),
        ("replace_probability", {"replace_probability": 0.3}, "without a masked language model"),
        ("model", {"model": "m", "replace_probability": 0}, "where replace_probability is 0"),
    ],
)
def test_a_setting_without_effect_is_refused(name: str, changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(DistilError, match=f"^{name} has no effect {reason}.*: .*, or leave {name} out$"):
        AugmentSettings(**changed)


@pytest.mark.parametrize(
    "changed",
    [
        {**NO_MASK, "p_pos": 0, "augment": "context"},
        {**NO_MASK, "tagger": "none", "augment": "context"},
        {**NO_MASK, "p_pos": 0, "p_ng": 0, "augment": "both"},
        {**NO_MASK, "p_pos": 0, "model": "m", "replace_probability": 0, "augment": "context"},
    ],
)
def test_settings_that_edit_nothing_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(DistilError, match=NOTHING):
        AugmentSettings(**changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"p_ng": 0},
        {"multiplication_factor": 1, "drop_labels": True, "provenance": True},
        {"multiplication_factor": 1, "p_mask": 0, "p_pos": 0, "p_ng": 0, "tagger": "none"},
        {"p_pos": 0, "tagger": "none"},
        {"replace_probability": 0},
        {**NO_MASK, "tokenizer": "t", "tagger": "none", "augment": "both"},
        {"tokenizer": "t", "tagger": "none", "mask_token": "<mask>"},
        {**NO_MASK, "p_pos": 0, "model": "m", **OF_MODEL},
    ],
)
def test_what_switches_an_operation_off_is_never_refused(changed: dict[str, Any]) -> None:
    AugmentSettings(**changed)


def test_a_setting_that_was_given_must_have_an_effect_even_as_its_default() -> None:
    settings = AugmentSettings(augment="context")
    settings.require_effect(["p_mask", "seed", "output_path"])
    with pytest.raises(DistilError, match="p_ng has no effect"):
        settings.require_effect(["p_ng"])


def test_the_tagger_that_auto_means_need_have_no_effect() -> None:
    settings = AugmentSettings(p_pos=0)
    assert settings.with_tagger("textblob").tagger == "textblob"
    assert settings.tagger == "auto"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_processes": 0}, "num_processes must be a whole number of at least 1, not 0"),
        ({"on_bad_example": "ignore"}, "on_bad_example must be one of error, skip, not 'ignore'"),
        ({"shard": "1/2"}, "a shard needs the statistics of the whole file"),
        ({"shard": "3/2", "statistics": "s.json"}, "shard must be i/n"),
        ({"statistics": "s.json"}, "statistics has no effect on a whole file.*: set shard, or leave statistics out"),
    ],
)
def test_ways_to_run_that_cannot_be(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(DistilError, match=message):
        RunSettings(**changed)


def test_shards() -> None:
    assert RunSettings(shard="2/4", statistics="s.json").part == (2, 4)
    assert RunSettings().part is None
    for text in ("0/2", "3/2", "1", "a/b"):
        with pytest.raises(DistilError, match="shard must be i/n"):
            parse_shard(text)


def test_options_reach_the_dataclass_that_has_them() -> None:
    settings, run = settings_from({"seed": 1, "model": Path("m"), "num_processes": 3, "squad_path": "x"})
    assert (settings, run) == (AugmentSettings(seed=1, model="m"), RunSettings(num_processes=3))


def test_every_setting_has_its_help_in_one_place() -> None:
    options = [*options_of(AugmentSettings), *options_of(RunSettings)]
    assert all(option.help for option in options)
    assert len({option.name for option in options}) == len(options)
    helped = {option.name: option.help for option in options}
    documented = argument_help(augment_squad.__doc__)
    assert documented.items() >= helped.items()
    assert set(documented) == set(inspect.signature(augment_squad).parameters)
    command = {parameter.name: parameter for parameter in typer.main.get_command(app).params}
    for option in options:
        assert command[str(option.name)].default == option.default
        assert command[str(option.name)].help.replace("\\[", "[") == option.help  # type: ignore[attr-defined]


def test_the_function_takes_what_haystack_1s_took_in_its_order() -> None:
    parameters = inspect.signature(augment_squad).parameters
    assert [name for name, parameter in parameters.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD] == [
        *("squad_path", "output_path", "glove_path", "model", "tokenizer", "multiplication_factor"),
        *("word_possibilities", "replace_probability", "device", "batch_size"),
    ]
    defaults = {field.name: field.default for kind in (AugmentSettings, RunSettings) for field in fields(kind)}
    assert {name: parameters[name].default for name in defaults} == defaults
    assert set(parameters) == {"squad_path", "output_path", "on_progress", *defaults}
    assert list(inspect.signature(make_statistics).parameters) == [
        *("squad_path", "output_path", "tagger", "num_processes", "on_bad_example", "overwrite", "on_progress")
    ]
