"""Divide SQuAD-format data into articles to learn from and articles to measure on.

python benchmarks/compare/split_by_article.py policies.json.gz --share 0.3 --output DIR

Writes `train.json.gz` and `held-out.json.gz`; the latter has the given share of the articles.
"""

from pathlib import Path
from typing import Annotated

import typer

from haystack_distill.data.squad.held_out import hold_out
from haystack_distill.data.squad.load import load_examples, write_squad


def main(
    data: Path,
    output: Annotated[Path, typer.Option(help="directory to write to")],
    share: Annotated[float, typer.Option(help="of the articles, to measure on")] = 0.3,
    seed: int = 42,
) -> None:
    """Write the two files."""
    train, held_out = hold_out(load_examples(data), share, seed=seed)
    output.mkdir(parents=True, exist_ok=True)
    write_squad(train, output / "train.json.gz", overwrite=True)
    write_squad(held_out, output / "held-out.json.gz", overwrite=True)


if __name__ == "__main__":
    typer.run(main)
