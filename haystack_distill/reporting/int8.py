"""What `export --int8 auto` tried, for the command line and the model card."""

from collections.abc import Mapping
from typing import Any

COLUMNS = ("backend", "how", "EM", "F1", "F1 lost", "windows/s", "exported")


def int8_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """The rows of a table with the columns above.

    Args:
        record: The content of `export.json`, with "tried".
    """
    return [
        [
            one["backend"],
            one["name"],
            f"{one['exact']:.2f}",
            f"{one['f1']:.2f}",
            f"{one['f1_drop']:.2f}",
            "" if one["windows_per_second"] is None else f"{one['windows_per_second']:.1f}",
            "yes" if one["kept"] else "",
        ]
        for one in record["tried"]
    ]


def int8_section(record: Mapping[str, Any]) -> str:
    """The section of a model card, in Markdown."""
    limit = record["settings"]["max_f1_drop"]
    lines = [COLUMNS, ["---"] * len(COLUMNS), *int8_rows(record)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return (
        f"Quantised in several ways; of those that lose at most {limit:g} points of F1 against fp32 on the data that "
        f"it was exported with, the fastest of each runtime was exported. windows/s are those of the machine that "
        f"exported it.\n\n{table}"
    )
