"""Sections that are added to a model card."""

from pathlib import Path

from haystack_distill.reporting.card_sections import add_section, read_card, without_results
from haystack_distill.reporting.model_card import write_card


def test_a_section_comes_before_the_limits_and_replaces_its_own_earlier_one(tmp_path: Path) -> None:
    for text in ("first", "second"):
        add_section(tmp_path, read_card(tmp_path) or "# Student\n\nOne.\n\n## Limits\n\nTwo.\n", "int8", text)
    card = read_card(tmp_path)
    assert card is not None
    assert "first" not in card
    assert card.index("One.") < card.index("## int8") < card.index("second") < card.index("## Limits")
    add_section(tmp_path, card, "Calibration", "third")
    assert (read_card(tmp_path) or "").count("## int8") == 1


def test_figures_of_other_answers_are_not_published(tmp_path: Path) -> None:
    card = write_card(tmp_path, metrics={"exact": 50.0, "f1": 60.0}, dev_data="dev.json", license="mit").read_text()
    assert "model-index" in card
    kept = without_results(card)
    front, body = kept.split("---\n")[1:3]
    assert "license: mit" in front
    assert not {"model-index", "metrics", "60"} & {line.partition(":")[0] for line in front.splitlines()}
    assert "60.0" not in front
    assert body.strip() == card.split("---\n")[2].strip()
    assert without_results(kept) == kept
    assert without_results("# My model\n") == "# My model\n"


def test_what_the_user_wrote_stays(tmp_path: Path) -> None:
    own = "# My model\n\n### Limits\nonly English\n\n## Calibration\nwhat I wrote myself\n"
    add_section(tmp_path, own, "Calibration", "new")
    card = read_card(tmp_path)
    assert card is not None
    assert card.startswith(own)
    assert "new\n" in card
    add_section(tmp_path, card + "\n# My notes\n\nlicensed by Ann\n", "Calibration", "newer")
    card = read_card(tmp_path)
    assert card is not None
    assert card.startswith(own)
    assert "# My notes\n\nlicensed by Ann\n" in card
    assert "new\n" not in card
