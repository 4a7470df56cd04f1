"""A page of HTML that can be sent: one file with its pictures in it, which asks for nothing else.

All text is escaped, whoever wrote it.

What this module does not know: what a page is about.
"""

import base64
import html
from collections.abc import Mapping, Sequence
from io import BytesIO

from PIL import Image

SIDE = 480  # pixels of a picture's longer side on a page, at most
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
  color: #1a1a1a; background: #fff; overflow-wrap: anywhere }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
th, td { border: 1px solid #8a8a8a; padding: .3rem .6rem; text-align: left; vertical-align: top;
  white-space: pre-wrap }
th { background: #eee } img { max-width: 100%; height: auto; border: 1px solid #8a8a8a }
@media (prefers-color-scheme: dark) { body { color: #eee; background: #161616 }
  th { background: #333 } }
"""
# Whatever a text should smuggle in: nothing is fetched, and nothing is run.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def web_page(title: str, *parts: str) -> str:
    """Return a whole page of `parts` under its title."""
    heading = html.escape(title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{heading}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{heading}</h1>\n" + "\n".join(parts) + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str) -> str:
    """Return the heading of a section."""
    return f"<h2>{html.escape(title)}</h2>"


def paragraph(text: str) -> str:
    """Return a paragraph."""
    return f"<p>{html.escape(text)}</p>"


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows with the same keys as a table under a header; "" for none."""
    if not rows:
        return ""
    header = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in rows[0])
    lines = [
        "<tr>" + "".join(f"<td>{html.escape(str(value))}</td>" for value in row.values()) + "</tr>"
        for row in rows
    ]
    body = "\n".join(lines)
    return f"<table>\n<thead><tr>{header}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def picture(image: Image.Image, words: str) -> str:
    """Return a picture, made smaller where it is large, with `words` for who does not see it."""
    image = image.convert("RGB")
    image.thumbnail((SIDE, SIDE))
    kind = "png" if image.getcolors(65536) else "jpeg"  # drawn, or a photograph
    file = BytesIO()
    image.save(file, kind, quality=85)
    data = base64.b64encode(file.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img src="data:image/{kind};base64,{data}" alt="{html.escape(words)}" {size}>'
