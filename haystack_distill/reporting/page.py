"""An HTML page without scripts or links, and its figures: what all reports look like."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The policy allows the page's own style and figures only, so that nothing is ever loaded from elsewhere.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
body {{ margin: 0 auto; max-width: 1180px; padding: 1rem 1.25rem 3rem; background: #fff; color: #1c1c1c;
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 1rem; }}
h2 {{ font-size: 1.2rem; margin: 2.25rem 0 .75rem; }}
p {{ max-width: 46rem; margin: .5rem 0; }}
.note, figcaption {{ color: #555; font-size: .875rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .875rem; overflow-wrap: normal; }}
th, td {{ text-align: left; vertical-align: top; padding: .35rem .9rem .35rem 0; border-bottom: 1px solid #ddd; }}
thead th {{ border-bottom-color: #888; }}
td.number, th.number {{ text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }}
table.texts {{ min-width: 52rem; overflow-wrap: anywhere; }}
table.texts td {{ min-width: 8rem; }}
table.texts td:last-child {{ min-width: 18rem; }}
small {{ display: block; color: #555; font-weight: normal; }}
th[scope=row] {{ min-width: 8rem; }}
.figures {{ display: grid; grid-template-columns: minmax(0, 1fr); gap: 1.75rem 2.5rem; }}
@media (min-width: 800px) {{ .figures {{ grid-template-columns: repeat(2, minmax(0, 1fr)); }} }}
figure {{ margin: 0; max-width: 540px; }}
figure h3 {{ font-size: 1rem; margin: 0 0 .25rem; }}
figure img {{ display: block; width: 100%; max-width: 100%; height: auto; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def page_of(title: str, body: Iterable[str]) -> str:
    """A page.

    Args:
        title: Its title, as text.
        body: Parts of HTML; empty ones are left out.
    """
    return _PAGE.format(title=escape(title), body="\n".join(part for part in body if part))


def table_of(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of numbers: the first cell of each row is its title.

    Args:
        titles: Of the columns, as text.
        rows: The cells of each row, as text.
    """
    head = "".join(
        f'<th scope="col"{" class=number" if number else ""}>{escape(title)}</th>'
        for number, title in enumerate(titles)
    )
    body = "\n".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f'<td class="number">{escape(cell)}</td>' for cell in cells)
        + "</tr>"
        for first, *cells in rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>'
    )


def png_of(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def figure_of(heading: str, caption: str, image: bytes) -> str:
    """A figure of a page, its image in the page itself.

    Args:
        heading: Its heading.
        caption: What it shows.
        image: The bytes of a PNG file.
    """
    width, height = (
        int.from_bytes(image[place : place + 4], "big") for place in (16, 20)
    )  # in the first chunk of a PNG
    data = base64.b64encode(image).decode("ascii")
    return (
        f'<figure><h3>{escape(heading)}</h3><img alt="{escape(heading)}. {escape(caption)}" width="{width}" '
        f'height="{height}" src="data:image/png;base64,{data}"><figcaption>{escape(caption)}</figcaption></figure>'
    )
