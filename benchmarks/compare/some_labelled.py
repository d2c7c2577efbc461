"""Divide a sample of SQuAD-format data into labelled and unlabelled questions.

python benchmarks/compare/some_labelled.py train-v1.1.json.gz --questions 11000 --labelled 1000 --output DIR

Writes `labelled.json.gz`, `unlabelled.json.gz` where some are, and `together.json.gz` with both, in which a question
without its label has `"labelled": false`. The labelled questions of one seed are among those of a larger number.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from haystack_distill.data.squad.load import load_examples, write_squad


def main(
    data: Path,
    questions: Annotated[int, typer.Option(help="how many are drawn")],
    labelled: Annotated[int, typer.Option(help="how many of them keep their label")],
    output: Annotated[Path, typer.Option(help="directory to write to")],
    seed: int = 42,
) -> None:
    """Write the three files."""
    examples = load_examples(data)
    chosen = np.random.default_rng(seed).permutation(len(examples))[:questions].tolist()
    with_label, places = set(chosen[:labelled]), sorted(chosen)

    def marked(row: dict[str, object], number: int) -> dict[str, object]:
        if places[number] in with_label:
            return row
        return row | {"labelled": False, "answers": {"text": [], "answer_start": []}}

    together = examples.select(places).map(marked, with_indices=True)
    output.mkdir(parents=True, exist_ok=True)
    write_squad(together, output / "together.json.gz", overwrite=True)
    for name, has_label in (("labelled", True), ("unlabelled", False)):
        part = together.select([number for number, place in enumerate(places) if (place in with_label) is has_label])
        if len(part):
            write_squad(part, output / f"{name}.json.gz", overwrite=True)


if __name__ == "__main__":
    typer.run(main)
