"""The recipe's file: what it may say, and how it is told what is wrong."""

from dataclasses import replace
from pathlib import Path

import pytest

from haystack_distill import DistilError
from haystack_distill.recipes.schema import (
    EXAMPLE,
    AnswersStep,
    GeneralStep,
    LayersStep,
    Recipe,
    StudentShape,
    load_recipe,
)

LEAST = "teacher: t\ndata: d\noutput_dir: o\n"


def load(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return load_recipe(path)


def test_the_example_is_a_recipe_and_its_comments_are_the_defaults(tmp_path: Path) -> None:
    recipe = load(tmp_path, EXAMPLE)
    assert recipe == Recipe(
        teacher="deepset/roberta-base-squad2",
        data=["train.json"],
        dev_data=["dev.json"],
        output_dir="distilled",
        student=StudentShape(layers=3),
    )
    lines = EXAMPLE.splitlines()
    sections: dict[str, list[str]] = {"": []}
    for line in lines:
        bare = line.removeprefix("# ") if line.startswith("# ") else line
        if bare.rstrip().endswith(":") and not bare.startswith(" ") and " " not in bare:
            section = bare.rstrip().rstrip(":")
            sections[section] = [f"{section}:"]
        elif bare.startswith("  "):
            inner = bare.strip().removeprefix("# ")
            if ":" in inner and inner.split(":")[0].isidentifier():
                sections[section].append(f"  {inner}")
        elif line.startswith("# ") and ":" in bare and bare.split(":")[0].isidentifier():
            sections[""].append(bare)
    named = LEAST + "\n".join(sections[""])
    assert load(tmp_path, named) == load(tmp_path, LEAST)
    layers = [line for line in sections["layers"] if "data:" not in line]
    answers = sections["answers"]
    assert load(tmp_path, LEAST + "\n".join([*layers, *answers])) == load(tmp_path, LEAST)
    assert "  n_epochs: 2" in "\n".join(layers)
    general = [line for line in sections["general"] if "teacher:" not in line]
    made = load(tmp_path, LEAST + "\n".join(general)).general
    assert made == GeneralStep(corpus=["texts/"])


def test_every_kind_of_value(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        """
teacher: t
data: [a.json, b.json]
output_dir: o
student: {hidden_size: 192, num_hidden_layers: 3}
general:
  corpus: [x.txt, y.txt]
  max_steps: 7
  learning_rate: 1e-4
  dropout: none
layers:
  layer_mapping: [2, none, 6]
  multiplication_factor: 20
  checkpoint_every: epoch
  data:
answers: none
dev_data: dev.json
labels_only: true
""",
    )
    assert recipe.data == ["a.json", "b.json"]
    assert recipe.student.fresh_shape == {"hidden_size": 192, "num_hidden_layers": 3}
    assert recipe.general == GeneralStep(corpus=["x.txt", "y.txt"], max_steps=7, learning_rate=1e-4, dropout=None)
    assert recipe.layers == LayersStep(
        layer_mapping=[2, None, 6], multiplication_factor=20, checkpoint_every="epoch", data=None
    )
    assert recipe.answers is None
    assert recipe.labels_only
    assert replace(recipe, answers=AnswersStep()).as_dict()["answers"]["temperature"] == 2.0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("techer: t", "unknown key 'techer'; did you mean 'teacher'"),
        ("teacher: t", "data is missing"),
        (LEAST + "layers: {n_epoch: 3}", "layers: unknown key 'n_epoch'; did you mean 'n_epochs'"),
        (LEAST + "layers: {n_epochs: 3.5}", "layers: n_epochs: '3.5' is not a whole number"),
        (LEAST + "layers: {learning_rate: fast}", "layers: learning_rate: 'fast' is not a number"),
        (LEAST + "layers: {learning_rate: -1}", "layers: learning_rate must be a number above 0"),
        (LEAST + "layers: {multiplication_factor: 0}", "layers: multiplication_factor must be"),
        (LEAST + "layers: {p_mask: 0.6, p_pos: 0.6}", "layers: p_mask . p_pos is 1.2"),
        (LEAST + "layers: {data: a, multiplication_factor: 2}", "layers: data of its own is taken as it is"),
        (LEAST + "layers: {augment: question}", "layers: augment has no effect with a multiplication_factor of 1"),
        (LEAST + "general: {text_column: body}", "general: text_column means nothing without a corpus"),
        (
            LEAST + "layers: {multiplication_factor: 2, p_ng: 0.9}",
            "layers: p_ng has no effect where only contexts are edited",
        ),
        (LEAST + "layers:", "layers: the section is empty: write none"),
        (LEAST + "general:", "general: the section is empty: write none"),
        (LEAST + "layers: 5", "layers: must be a section"),
        (LEAST + "layers: none\nanswers: none", "every step is left out"),
        (LEAST + "answers: {distillation_loss: kl}", "answers: distillation_loss: 'kl' is not one of kl_div, mse"),
        (
            LEAST + "answers: {distillation_loss: mse, temperature: 3}",
            "answers: temperature means nothing to mse, which compares the logits as they are",
        ),
        (LEAST + "answers: {temperature:}", "answers: temperature: a value is missing"),
        (LEAST + "general: {corpus: c, n_epochs: 3}", "general: .*say max_steps, not n_epochs"),
        (LEAST + "general: {corpus: c, max_steps: none}", "general: .*say max_steps, not n_epochs"),
        (LEAST + "general: {corpus: c, temperature: 3}", "temperature means nothing to the objective 'layers'"),
        (
            LEAST + "general: {corpus: c, objective: predictions, layer_mapping: last}",
            "layer_mapping means nothing to the objective 'predictions'",
        ),
        (LEAST + "student: {layers: 3, hidden_size: 4}", "student: say one of"),
        (LEAST + "student: {which: last}", "student: which chooses among layers"),
        (LEAST + "student: {layers: [3]}", "student: layers: must be a single value"),
        (LEAST + "labels_only: maybe", "labels_only: 'maybe' is neither true nor false"),
        (LEAST + "labels_only: true", "labels_only is there to compare with"),
        (LEAST + "seed: 1\nseed: 2", "the key 'seed' appears twice"),
        ("- a", "must map"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(DistilError, match=rf"recipe.yaml: .*{says}"):
        load(tmp_path, text)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DistilError, match=r"absent.yaml: cannot be read"):
        load_recipe(tmp_path / "absent.yaml")
