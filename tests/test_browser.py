"""The chat page as a person uses it, in a real browser; in `make browser`, with every family."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from helpers.run.pipeline import VisionLanguagePipeline
from helpers.serve.demo import build_page, open_page
from helpers.shapes import world
from tests.browser import split_words
from tests.bundled import BUNDLED_NAMES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio.queueing"),
]


PAGES = ("internvl2", "llava_mpt")  # for several pictures, and for one


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(family, marks=[pytest.mark.long("browser")] * (family not in PAGES))
        for family in BUNDLED_NAMES
    ],
)
def server(request, bundled_folder):
    """Serve the page of a bundled model, and return its `address` and its `pipeline`."""
    pipeline = VisionLanguagePipeline(bundled_folder(request.param, "int8"))
    blocks = build_page(pipeline, title="Ask a small model")
    yield SimpleNamespace(address=open_page(blocks), pipeline=pipeline)
    blocks.close()


# What does not depend on the family is tried with one of them.
WHICHEVER = pytest.mark.parametrize("server", ["internvl2"], indirect=True)


@pytest.fixture
def picture_files(tmp_path):
    """Return the files of two pictures that differ in what is at the top left."""
    paths = {}
    for shape, colour in (("circle", "red"), ("star", "blue")):
        items = (world.Item(shape, colour), None, None, world.Item("square", "green"))
        paths[shape] = tmp_path / f"{shape}.png"
        world.draw(world.Scene((2, 2), items, style=3)).save(paths[shape])
    return paths


class Chat:
    """The page as its user sees it: everything is found by its label or its role."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        page.goto(address)
        self.question = page.get_by_label("Question")
        expect(self.question).to_be_visible()

    def show(self, path) -> None:
        self.page.locator("input[type=file]").first.set_input_files(path)
        expect(self.page.locator("img[src*='file=']").first).to_be_visible()  # it is there

    def ask(self, text: str) -> None:
        self.question.fill(text)
        self.press("Ask")

    def press(self, name: str) -> None:
        button = self.page.get_by_role("button", name=name, exact=True)
        button.filter(has_text=name).click()  # Gradio has icons of the same name

    @property
    def answers(self):
        return self.page.get_by_test_id("bot")


def test_asking_about_a_picture(new_page, server, picture_files, screenshot):
    chat = Chat(new_page(), server.address)
    chat.show(picture_files["circle"])
    chat.ask("What shape is at the top left?")
    expect(chat.answers.last).to_contain_text("circle")
    expect(chat.answers.last).to_contain_text("first token")
    chat.ask("What colour is the shape at the bottom right?")
    expect(chat.answers.last).to_contain_text("green")
    if server.pipeline.processor.most_pictures == 1:
        screenshot(chat.page, "page")
    chat.press("Regenerate")
    expect(chat.answers.last).to_contain_text("green")
    expect(chat.answers).to_have_count(2)
    chat.press("Clear")
    expect(chat.answers).to_have_count(0)


def test_a_broken_file_is_told_in_the_page(new_page, server, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    chat = Chat(new_page(), server.address)
    chat.page.locator("input[type=file]").first.set_input_files(broken)
    chat.ask("What shape is at the top left?")
    expect(chat.answers.last).to_contain_text("broken.png is not a picture in a format")


@pytest.fixture
def answering(new_page, server, picture_files, slowly):
    """Return a chat whose answer has begun and takes a few seconds more."""
    slowly.seconds = 0.4
    chat = Chat(new_page(), server.address)
    chat.show(picture_files["star"])
    chat.ask("Describe the picture.")
    expect(chat.answers.last).to_contain_text("blue")
    return chat


def test_an_answer_is_stopped(answering):
    answering.press("Stop")
    expect(answering.answers.last).to_contain_text("first token", timeout=1000)  # it has ended
    expect(answering.answers.last).not_to_contain_text("green")


def test_the_chat_stays_empty_when_a_running_answer_is_cleared(answering):
    answering.press("Clear")
    answering.page.wait_for_timeout(2000)
    expect(answering.answers).to_have_count(0)


@WHICHEVER
def test_a_question_just_after_clearing(answering):
    answering.press("Clear")
    answering.ask("What shape is at the top left?")
    expect(answering.answers.last).to_contain_text("star")
    expect(answering.answers.last).to_contain_text("first token")
    expect(answering.answers).to_have_count(1)


@WHICHEVER
def test_the_next_question_is_typed_while_an_answer_comes(answering):
    answering.ask("What shape is at the top left?")
    expect(answering.question).to_have_value("What shape is at the top left?")
    expect(answering.answers).to_have_count(2)  # it is asked when the answer is complete
    expect(answering.answers.last).to_contain_text("star")
    expect(answering.question).to_have_value("")


@WHICHEVER
def test_a_double_click_asks_once(new_page, server):
    chat = Chat(new_page(), server.address)
    chat.question.fill("What is in the picture?")
    chat.page.get_by_role("button", name="Ask", exact=True).dblclick()
    expect(chat.page.get_by_text("The question is empty")).to_be_visible()
    expect(chat.answers.last).to_contain_text("first token")
    expect(chat.answers).to_have_count(1)


def test_two_people_at_once(new_page, server, picture_files):
    """Each sees the answers to their own picture, also when questions come in turn."""
    chats = {shape: Chat(new_page(), server.address) for shape in picture_files}
    for shape, chat in chats.items():
        chat.show(picture_files[shape])
    for number in (1, 2):
        for chat in chats.values():
            chat.ask("What shape is at the top left?")
        for shape, chat in chats.items():
            expect(chat.answers).to_have_count(number)
            expect(chat.answers.last).to_contain_text("first token")
            expect(chat.answers.last).to_contain_text(shape)


def test_files_go_when_the_window_is_closed(new_page, server, tmp_path):
    # No other window has this picture: one that two have stays until both are closed.
    path = tmp_path / "own.png"
    world.draw(world.Scene((1, 1), (world.Item("cross", "red"),), style=5)).save(path)
    chat = Chat(new_page(), server.address)
    chat.show(path)
    source = chat.page.locator("img[src*='file=']").first.get_attribute("src")
    file = Path(source.split("file=")[1])
    chat.ask("What shape is at the top left?")
    expect(chat.answers.last).to_contain_text("first token")
    assert file.exists()
    chat.page.context.close()
    for _ in range(200):
        if not file.exists():
            return
        time.sleep(0.1)
    pytest.fail("the file is still there")


@WHICHEVER
def test_a_setting_that_changes_nothing_is_greyed(new_page, server):
    page = Chat(new_page(), server.address).page
    fields = [page.get_by_label(f"number input for {name}") for name in ("Temperature", "Top-p")]
    for field in fields:
        expect(field).to_be_disabled()
    expect(page.get_by_label("number input for Maximum new tokens")).to_be_enabled()
    page.get_by_label("Sample").check()
    for field in fields:
        expect(field).to_be_enabled()
    page.get_by_label("Sample").uncheck()
    for field in fields:
        expect(field).to_be_disabled()


@WHICHEVER
def test_the_settings_of_a_narrow_window_are_folded_below_the_chat(new_page, server):
    """The question is in view there, and words stay whole; a wide window has the settings open."""
    wide, narrow = new_page(), new_page()
    narrow.set_viewport_size({"width": 390, "height": 844})
    chat = Chat(narrow, server.address)
    setting = "number input for Maximum new tokens"
    expect(Chat(wide, server.address).page.get_by_label(setting)).to_be_in_viewport()
    expect(narrow.get_by_label(setting)).not_to_be_visible()
    expect(chat.question).to_be_in_viewport()
    fold = narrow.get_by_role("button", name="Settings")
    assert fold.bounding_box()["y"] > chat.question.bounding_box()["y"]
    fold.click()
    expect(narrow.get_by_label(setting)).to_be_visible()
    for name in ("Ask", "Stop", "Regenerate", "Clear"):
        button = narrow.get_by_role("button", name=name, exact=True).filter(has_text=name)
        assert button.evaluate("button => button.scrollWidth <= button.clientWidth"), name


def test_a_picture_is_whole_in_a_narrow_window(new_page, server, picture_files):
    page = new_page()
    page.set_viewport_size({"width": 390, "height": 844})
    Chat(page, server.address).show(picture_files["circle"])
    frame, picture = page.locator(".pictures").first, page.locator("img[src*='file=']").first
    outer, inner = frame.bounding_box(), picture.bounding_box()
    assert outer["y"] <= inner["y"]
    assert inner["y"] + inner["height"] <= outer["y"] + outer["height"]
    assert picture.evaluate("img => getComputedStyle(img).objectFit") in ("contain", "scale-down")


@WHICHEVER
def test_a_long_answer_breaks_between_words(new_page, server, picture_files):
    page = new_page()
    page.set_viewport_size({"width": 390, "height": 844})
    chat = Chat(page, server.address)
    chat.show(picture_files["circle"])
    chat.ask("Describe the picture.")
    expect(chat.answers.last).to_contain_text("first token")
    assert chat.answers.last.bounding_box()["height"] > 90  # several lines
    assert split_words(chat.answers.last) == []


def test_with_the_keyboard_alone(new_page, server, picture_files):
    chat = Chat(new_page(), server.address)
    chat.show(picture_files["circle"])
    chat.question.focus()
    chat.page.keyboard.type("What shape is at the top left?")
    chat.page.keyboard.press("Enter")
    expect(chat.answers.last).to_contain_text("circle")
    reached = set()
    for _ in range(40):
        chat.page.keyboard.press("Tab")
        focused = chat.page.evaluate("document.activeElement.innerText || ''")
        reached.add(focused.strip())
        if focused.strip() == "Clear":
            chat.page.keyboard.press("Enter")
            break
    assert {"Ask", "Stop", "Regenerate"} <= reached
    expect(chat.answers).to_have_count(0)


def test_accessibility(new_page, server, picture_files):
    chat = Chat(new_page(), server.address)
    chat.show(picture_files["circle"])
    chat.ask("What shape is at the top left?")
    expect(chat.answers.last).to_contain_text("first token")
    violations = Axe().run(chat.page).response["violations"]
    places = {rule["id"]: [node["html"][:120] for node in rule["nodes"]] for rule in violations}
    assert places == {}
