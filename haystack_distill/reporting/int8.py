"""What `export --int8 auto` tried, for the command line and the model card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from haystack_distill.models.backends.exported import runtime_of
from haystack_distill.utils.model_files import EXPORT_FOLDER, EXPORT_RECORD, OPENVINO_FOLDER, read_json_object

_RUNTIMES = (EXPORT_FOLDER, OPENVINO_FOLDER)

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
            *("" if one[name] is None else f"{one[name]:.2f}" for name in ("exact", "f1", "f1_drop")),
            "" if one["windows_per_second"] is None else f"{one['windows_per_second']:.1f}",
            "yes" if one["kept"] else "failed" if one.get("error") else "",
        ]
        for one in record["tried"]
    ]


def int8_section(records: Mapping[str, Mapping[str, Any]]) -> str:
    """The section of a model card, in Markdown.

    Args:
        records: As `exported_int8` returns them.
    """
    parts = []
    for runtime, record in records.items():
        rows = [row for row in int8_rows(record) if runtime_of(row[0]) == runtime]
        table = "\n".join(f"| {' | '.join(line)} |" for line in (COLUMNS, ["---"] * len(COLUMNS), *rows))
        questions = record.get("questions", "")  # exports of earlier versions did not count them
        measured = f"{questions} questions".strip()
        parts.append(
            f"Quantised in several ways; of those that lose at most {record['settings']['max_f1_drop']:g} points of F1 "
            f"against fp32 on the {measured} that it was exported with, the fastest was exported. "
            f"windows/s are those of the machine that exported it.\n\n{table}"
        )
    return "\n\n".join(parts)


def exported_int8(directory: Path) -> dict[str, dict[str, Any]]:
    """The records of a reader directory's exports that `--int8 auto` made, by runtime.

    Raises:
        DistilError: A record cannot be read.
    """
    records = {runtime: read_json_object(directory / runtime, EXPORT_RECORD) or {} for runtime in _RUNTIMES}
    return {runtime: record for runtime, record in records.items() if "tried" in record}
