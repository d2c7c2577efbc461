from pathlib import Path

import pytest

from haystack_distill.errors import DistilError
from haystack_distill.utils.yaml_config import Option, load_config

OPTIONS = {
    "n_epochs": Option(int),
    "learning_rate": Option(float),
    "data": Option(str, repeatable=True),
    "dev_data": Option(str, repeatable=True, optional=True),
    "dropout": Option(str, takes_none=True),
    "which": Option(str, comma_separated=True),
    "question": Option(str),
}


def load(tmp_path: Path, text: str) -> dict:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, OPTIONS)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("# nothing but a comment\n", {}),
        ("n_epochs: 3", {"n_epochs": "3"}),
        ("learning_rate: 5e-5", {"learning_rate": "5e-5"}),
        ("question: 1.10", {"question": "1.10"}),
        ("question: no", {"question": "no"}),
        ("question: 'null'", {"question": "null"}),
        ("question: Où?", {"question": "Où?"}),
        ("data: a.json", {"data": ["a.json"]}),
        ("data: [a.json, b.json]", {"data": ["a.json", "b.json"]}),
        ("dev_data: null", {}),
        ("dev_data:", {}),
        ("dropout: ~", {"dropout": "none"}),
        ("dropout: none", {"dropout": "none"}),
        ("which: [1, 3]", {"which": "1,3"}),
        ("which: [1, null]", {"which": "1,none"}),
        ("which: uniform", {"which": "uniform"}),
    ],
)
def test_values_are_what_one_would_type(tmp_path: Path, text: str, values: dict) -> None:
    assert load(tmp_path, text) == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_epoch: 3", "unknown key 'n_epoch'; did you mean 'n_epochs'?"),
        ("n-epochs: 3", "unknown key 'n-epochs'; did you mean 'n_epochs'?"),
        ("Learning_Rate: 3", "did you mean 'learning_rate'?"),
        ("xyz: 3", "unknown key 'xyz'; the keys are data, dev_data, dropout, learning_rate, n_epochs, question, which"),
        ("null: 3", "unknown key None"),
        ("n_epochs: 3.5", "n_epochs: invalid literal"),
        ("n_epochs: true", "n_epochs: invalid literal"),
        ("n_epochs: null", "n_epochs: the value is missing"),
        ("n_epochs: [1]", "n_epochs: must be a single value, not a list"),
        ("n_epochs: {a: 1}", "n_epochs: must be a single value, not a mapping"),
        ("data: [[a]]", "data: must be a list of single values"),
        ("data: [a, null]", "data: must be a list of single values"),
        ("which: []", "which: must be a list of single values"),
        ("n_epochs: 1\nn_epochs: 2", "the key 'n_epochs' appears twice"),
        ("- n_epochs", "must map option names to values"),
        ("data: [", "not valid YAML"),
        ("? [a]\n: 1", "not valid YAML"),
    ],
)
def test_what_is_wrong_is_named_with_the_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DistilError) as raised:
        load(tmp_path, text)
    assert str(raised.value).startswith(f"{tmp_path / 'run.yaml'}: ")
    assert message in str(raised.value)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(DistilError, match=r"absent\.yaml: cannot be read"):
        load_config(tmp_path / "absent.yaml", OPTIONS)
    (tmp_path / "latin.yaml").write_bytes(b"question: \xe9")
    with pytest.raises(DistilError, match=r"latin\.yaml: cannot be read"):
        load_config(tmp_path / "latin.yaml", OPTIONS)


def test_tags_run_nothing(tmp_path: Path) -> None:
    made = tmp_path / "made"
    with pytest.raises(DistilError, match="must be a single value"):
        load(tmp_path, f"question: !!python/object/apply:os.mkdir [{made}]")
    assert not made.exists()
