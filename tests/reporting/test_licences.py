"""Licences and languages that the Hugging Face hub accepts in a model card."""

import pytest

from haystack_distill import DistilError
from haystack_distill.reporting.licences import require_language, require_licence


@pytest.mark.parametrize("licence", [None, "apache-2.0", "mit", "cc-by-sa-4.0", "other"])
def test_licences_of_the_hub(licence: str | None) -> None:
    require_licence(licence)


@pytest.mark.parametrize(
    ("licence", "message"),
    [
        ("Apache 2.0", r"the hub has no licence 'Apache 2.0': did you mean \"apache-2.0\""),
        ("my own", r"give its identifier, such as \"apache-2.0\" \(a licence without an identifier is \"other\"\)$"),
    ],
)
def test_other_licences_get_a_hint(licence: str, message: str) -> None:
    with pytest.raises(DistilError, match=message):
        require_licence(licence)


@pytest.mark.parametrize("language", [None, "en", "deu", "code", "multilingual"])
def test_languages_of_the_hub(language: str | None) -> None:
    require_language(language)


@pytest.mark.parametrize("language", ["English", "e", "en-GB", "", "EN"])
def test_other_languages_are_refused(language: str) -> None:
    with pytest.raises(DistilError, match=r"^language must be a code of two or three letters"):
        require_language(language)
