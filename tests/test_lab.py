"""A notebook as a reader uses it: JupyterLab in a real browser, run all, and the widgets.

One notebook in `make test`, all of them in `make browser`.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import nbformat
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
NAMES = sorted(path.name for path in NOTEBOOKS.glob("*.ipynb"))
QUICKEST = "03-internvl2.ipynb"  # the quickest of those with every widget
SECONDS = 300  # for a notebook on a busy machine; measured: 40
ADDED_CODE = 'print(f"{pipeline.folder.name} on {pipeline.device}")'  # a cell that is added

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Serve JupyterLab on a copy of the notebooks; gives its address."""
    folder = tmp_path_factory.mktemp("lab")
    ignore = shutil.ignore_patterns("models")
    shutil.copytree(NOTEBOOKS, folder / "notebooks", ignore=ignore)
    for path in (folder / "notebooks").glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        notebook.cells.append(nbformat.v4.new_code_cell(ADDED_CODE))
        nbformat.write(notebook, path)
    # All cells are in the page, not only those in view, so that a test can find them.
    write_setting(folder, "notebook-extension/tracker", {"windowingMode": "none"})
    write_setting(folder, "apputils-extension/notification", {"fetchNews": "false"})
    with socket.socket() as free_socket:
        free_socket.bind(("127.0.0.1", 0))
        port = free_socket.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    command += [f"--ServerApp.root_dir={folder / 'notebooks'}", "--IdentityProvider.token="]
    command += [f"--LabApp.user_settings_dir={folder / 'settings'}", "--LabApp.news_url=None"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    command += ["--LabApp.extension_manager=readonly"]
    address = f"http://127.0.0.1:{port}"
    environment = os.environ | {"VLM_QUESTIONS": "14"}
    with (
        (folder / "log").open("w", encoding="utf-8") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process,
    ):
        wait_for(f"{address}/api")
        yield address
        process.terminate()


def write_setting(folder: Path, plugin: str, values: dict) -> None:
    path = folder / "settings" / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")


def wait_for(address: str) -> None:
    for _ in range(120):
        try:
            if httpx.get(address).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    pytest.fail(f"nothing answers at {address}")


class Notebook:
    """An open notebook."""

    def __init__(self, page: Page, address: str, name: str) -> None:
        self.page = page
        page.set_default_timeout(60_000)
        # A workspace of its own: the usual one opens again what was open in it before. JupyterLab
        # does not take dots in its name.
        workspace = Path(name).stem.replace(".", "-")
        page.goto(f"{address}/lab/workspaces/{workspace}/tree/{name}")
        expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible(timeout=60_000)

    def menu(self, menu: str, entry: str) -> None:
        self.page.get_by_role("menuitem", name=menu, exact=True).click()
        self.page.get_by_role("menuitem", name=entry, exact=True).click()

    def run_all(self) -> None:
        self.menu("Run", "Run All Cells")
        self.wait()

    def wait(self) -> None:
        """Wait until no cell waits."""
        busy_cells = self.page.locator(".jp-InputPrompt", has_text="[*]:")
        expect(busy_cells).to_have_count(0, timeout=SECONDS * 1000)

    def choose(self, label: str, value: str) -> None:
        """Choose an entry of a widget by its label and the beginning of its words."""
        words = next(words for words in self.options(label) if words.startswith(value))
        self.page.get_by_label(f"{label}:").select_option(words)

    def options(self, label: str) -> list[str]:
        """Return the words of a widget's entries."""
        return self.page.get_by_label(f"{label}:").locator("option").all_text_contents()

    def run_cell_with(self, code: str) -> str:
        """Run the cell that has some code, and return what it shows."""
        cell = self.page.locator(".jp-CodeCell", has_text=code).first
        cell.locator(".jp-InputArea-editor").click()
        self.page.keyboard.press("Control+Enter")
        self.page.wait_for_timeout(500)
        self.wait()
        return cell.locator(".jp-Cell-outputArea").inner_text()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.long("browser")] * (name != QUICKEST))
        for name in NAMES
    ],
)
def test_run_all_and_the_widgets(new_page, lab, name, screenshot):
    notebook = Notebook(new_page(), lab, name)
    notebook.run_all()
    page = notebook.page
    expect(page.get_by_role("link", name="http://127.0.0.1:")).to_be_visible()
    assert page.locator(".jp-RenderedText[data-mime-type*='error']").count() == 0

    for label, value, line in (
        ("Precision", "int8", "Precision: int8 ("),
        ("Device", "AUTO", "Device: AUTO (OpenVINO decides"),
    ):
        notebook.choose(label, value)
        expect(page.get_by_text(line)).to_be_visible()
    notebook.run_cell_with("pipeline = VisionLanguagePipeline(")
    output = notebook.run_cell_with(ADDED_CODE)
    assert output.strip().endswith("on AUTO")
    if name == QUICKEST:
        assert output.strip() == "int8 on AUTO"
        assert "int8 written: language model INT8" in notebook.run_cell_with("widths = {}")
        page.get_by_label("Precision:").scroll_into_view_if_needed()
        screenshot(page, "notebook")

    original = notebook.options("Checkpoint")[1]
    notebook.choose("Checkpoint", original)
    expect(page.get_by_text(f"Checkpoint: {original.split(':')[0]} (")).to_be_visible()
    violations = Axe().run(page, context=".widget-vbox").response["violations"]
    assert [
        (rule["id"], [node["html"][:120] for node in rule["nodes"]]) for rule in violations
    ] == []
