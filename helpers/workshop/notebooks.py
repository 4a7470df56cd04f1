"""Execute a notebook in view of its reader: `python -m helpers.workshop.notebooks NOTEBOOK`.

Every code cell gets a line with its place, its first line of code and its seconds, under the
heading of its section. What a cell tagged "show" prints or displays as text is printed as it
comes, so that an answer is seen to be written. The executed notebook and an HTML copy, which
loads nothing from elsewhere, are left in a folder; with `--in-place` the notebook itself is
replaced, for its next commit.

What this module does not know: formulas in the HTML copy (they would need a script from the
network), and cells that wait for input.
"""

import argparse
import base64
import mimetypes
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from helpers.errors import UserError, writing
from helpers.files import write_whole

ROOT = Path(__file__).parent.parent.parent  # of the collection
FOLDER = ROOT / "notebooks"
SHOW = "show"  # the tag of a cell whose text the reader of the terminal sees too
CODE_WIDTH = 60  # characters of a cell's first line
# The same for every computer, so that a notebook's next execution changes outputs only.
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# nbconvert's page without the scripts that it would load from the network, with the description of
# a picture that stands in its cell's metadata, and with long lines as they are, to be scrolled;
# so are diagrams, whose words nobody could read at the width of a telephone.
PAGE = """\
{%- extends 'index.html.j2' -%}
{%- block html_head_css -%}
{{ super() }}
<style>
.jp-OutputArea-output pre { white-space: pre; overflow-x: auto; }
.jp-RenderedMarkdown p:has(img) { overflow-x: auto; }
.jp-RenderedMarkdown img { min-width: 40rem; }
</style>
{%- endblock -%}
{%- macro picture(kind, data, cell) -%}
<div class="jp-RenderedImage jp-OutputArea-output">
<img src="data:{{ kind }};base64,{{ data }}" alt="{{ cell.metadata.get('alt', '') | escape_html }}">
</div>
{%- endmacro -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block data_png scoped -%}
{{ picture('image/png', output.data['image/png'].strip(), cell) }}
{%- endblock -%}
{%- block data_svg scoped -%}
{{ picture('image/svg+xml', output.data['image/svg+xml'] | text_base64, cell) }}
{%- endblock -%}
"""


class NotebookError(UserError):
    """A cell of a notebook failed."""


class NotebookProgress:
    """What the terminal shows while a notebook runs."""

    def __init__(self, cells: int) -> None:
        self.cells = cells
        self.text = ""  # what the running cell has shown so far
        self.room = 0  # characters between its first line of code and its seconds

    def section(self, title: str) -> None:
        """Begin a section."""
        print(f"\n{title}", flush=True)

    def begin(self, number: int, cell: NotebookNode) -> None:
        """Name the cell that begins to run."""
        place = f"{number:{len(str(self.cells))}}/{self.cells}"
        line = first_line(cell.source)
        print(f"  {place}  {line}", end="", flush=True)
        self.text, self.room = "", CODE_WIDTH - len(line)

    def show(self, text: str) -> None:
        """Show a piece of the running cell's text."""
        print(text if self.text else f"\n{text}", end="", flush=True)
        self.text += text

    def end(self, seconds: float) -> None:
        """Say how long the cell took, on its own line or below what it has shown."""
        if self.text:
            print("" if self.text.endswith("\n") else "\n", end="", flush=True)
        else:
            print(f"{' ' * self.room}{seconds:7.1f} s", flush=True)


class Executor(NotebookClient):
    """nbclient's executor that shows what tagged cells say, while they say it."""

    def __init__(self, notebook: NotebookNode, folder: Path, progress: NotebookProgress) -> None:
        super().__init__(
            notebook,
            timeout=None,
            coalesce_streams=True,
            kernel_name="python3",
            record_timing=False,  # clock times would change with every execution
            store_widget_state=False,
            resources={"metadata": {"path": str(folder)}},
        )
        self.progress = progress

    def process_message(
        self, msg: dict[str, Any], cell: NotebookNode, cell_index: int
    ) -> NotebookNode | None:
        """Take a message of the kernel, and show its text if the cell is tagged so."""
        output = super().process_message(msg, cell, cell_index)
        tagged = SHOW in cell.metadata.get("tags", [])
        if tagged and output is not None and (text := text_of(output)):
            self.progress.show(text)
        return output

    def run(self) -> None:
        """Execute all cells in order; stop at the first that fails."""
        number, title = 0, ""
        # The kernel's own log would run into the lines of progress; a cell's stderr is kept.
        with self.setup_kernel(stderr=subprocess.DEVNULL):
            for index, cell in enumerate(self.nb.cells):
                if cell.cell_type == "markdown" and (heading := heading_of(cell.source)):
                    title = heading
                    self.progress.section(title)
                elif cell.cell_type == "code":
                    number += 1
                    self._run_cell(cell, index, f"Cell {number} ({title})", number)

    def _run_cell(self, cell: NotebookNode, index: int, name: str, number: int) -> None:
        started = time.monotonic()
        self.progress.begin(number, cell)
        try:
            self.execute_cell(cell, index)
        except CellExecutionError as error:
            raise NotebookError(f"{name} failed{reason_of(error)}") from None
        except DeadKernelError:
            raise NotebookError(f"{name} ended the kernel; was there enough memory?") from None
        self.progress.end(time.monotonic() - started)


def heading_of(markdown: str) -> str | None:
    """Return a cell's first heading of level 1 or 2."""
    heading = re.search(r"^##? (.+)$", markdown, flags=re.MULTILINE)
    return heading[1].strip() if heading else None


def first_line(source: str) -> str:
    """Return the first line that does something, cut to the terminal's width."""
    lines = [line for line in source.splitlines() if line.strip() and not line.startswith("#")]
    line = lines[0] if lines else ""
    return line if len(line) <= CODE_WIDTH else line[: CODE_WIDTH - 3] + "..."


def text_of(output: NotebookNode) -> str:
    """Return an output as text; a picture's or a widget's has none worth showing."""
    if output.output_type == "stream":
        return output.text if output.name == "stdout" else ""
    data = output.get("data", {})
    if any(kind.startswith("image/") or "widget" in kind for kind in data):
        return ""
    text = data.get("text/markdown", data.get("text/plain", ""))
    return f"{text}\n" if text else ""


def reason_of(error: CellExecutionError) -> str:
    """Return the line of the cell at which it failed, and why."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", error.traceback)
    line = re.search(r"^-+> *\d+ (.*)$", plain, flags=re.MULTILINE)
    place = f" at: {line[1].strip()}" if line else "."
    return f"{place}\n{error.ename}: {error.evalue}".rstrip(": ")


def read_notebook(path: Path) -> NotebookNode:
    """Read a notebook, without the outputs of its last execution."""
    try:
        notebook: NotebookNode = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    except FileNotFoundError:
        raise NotebookError(f"{path} does not exist; give the path of a notebook.") from None
    except Exception as error:  # nbformat raises half a dozen types for what is no notebook
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise NotebookError(f"{path} is not a notebook that can be read ({reason}).") from None
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def html_copy(notebook: NotebookNode, source: Path) -> str:
    """Return an executed notebook as one HTML page that holds all its pictures."""
    exporter = HTMLExporter(raw_template=PAGE)  # type: ignore[no-untyped-call]
    resources = {"metadata": {"name": source.stem, "path": str(source.parent)}}
    page: str = exporter.from_notebook_node(notebook, resources=resources)[0]
    return with_pictures(page, source.parent)


def with_pictures(page: str, folder: Path) -> str:
    """Return a page in which pictures that are files beside it, in `folder`, stand themselves.

    nbconvert's `embed_images` closes what Markdown folds, so that solutions stand open.
    """

    def embedded(match: re.Match[str]) -> str:
        kind, _ = mimetypes.guess_type(match[2])
        content = base64.b64encode((folder / match[2]).read_bytes()).decode()
        return f"{match[1]}data:{kind};base64,{content}{match[3]}"

    return re.sub(r'(<img[^>]*? src=")(?!data:|https?:)([^"]+)(")', embedded, page)


def notebook_text(notebook: NotebookNode) -> str:
    """Return a notebook as the text of its file."""
    text: str = nbformat.writes(notebook)  # type: ignore[no-untyped-call]
    return text + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a file, and the folders above it, so that it is whole or as it was."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)


def execute(source: Path) -> NotebookNode:
    """Execute a notebook in its own folder, with visible progress, and return it."""
    notebook = read_notebook(source)
    progress = NotebookProgress(sum(cell.cell_type == "code" for cell in notebook.cells))
    Executor(notebook, source.parent, progress).run()
    notebook.metadata = nbformat.from_dict(METADATA)  # type: ignore[no-untyped-call]
    return notebook


def save(notebook: NotebookNode, source: Path, output: Path) -> list[Path]:
    """Write the executed notebook and its HTML copy; return their paths."""
    copies = {
        output / source.name: notebook_text(notebook),
        output / f"{source.stem}.html": html_copy(notebook, source),
    }
    for path, text in copies.items():
        write_text(path, text)
    if (images := source.parent / "images").is_dir():  # the notebook names them relatively
        shutil.copytree(images, output / "images", dirs_exist_ok=True)
    return list(copies)


def main(arguments: Sequence[str] | None = None) -> int:
    """Execute the notebook that the command line names; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.workshop.notebooks", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--output", type=Path, default=Path("output"), help="default: output")
    parser.add_argument("--in-place", action="store_true", help="replace the notebook itself")
    options = parser.parse_args(arguments)
    try:
        notebook = execute(options.notebook)
        if options.in_place:
            write_text(options.notebook, notebook_text(notebook))
            paths = [options.notebook]
        else:
            paths = save(notebook, options.notebook, options.output)
    except UserError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; nothing was written.", file=sys.stderr)
        return 130
    print("\nWrote " + " and ".join(str(path) for path in paths))
    return 0


if __name__ == "__main__":
    sys.exit(main())
