"""Sections that are added to a model card."""

from pathlib import Path

from haystack_distill.reporting.card_sections import add_section, read_card


def test_a_section_comes_before_the_limits_and_replaces_its_own_earlier_one(tmp_path: Path) -> None:
    for text in ("first", "second"):
        add_section(tmp_path, read_card(tmp_path) or "# Student\n\nOne.\n\n## Limits\n\nTwo.\n", "int8", text)
    card = read_card(tmp_path)
    assert card is not None
    assert "first" not in card
    assert card.index("One.") < card.index("## int8") < card.index("second") < card.index("## Limits")
    add_section(tmp_path, card, "Calibration", "third")
    assert (read_card(tmp_path) or "").count("## int8") == 1


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
