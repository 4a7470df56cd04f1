"""The chat page, driven as a browser would: over loopback, through Gradio's own client."""

import re
import socket
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from helpers.errors import SettingsError
from helpers.inputs.box_drawing import draw_boxes
from helpers.inputs.boxes import Box
from helpers.inputs.messages import content_of
from helpers.run.replies import AnswerPiece, Reply
from helpers.serve import controls, demo, windows
from helpers.serve.demo import build_page, open_page, save_examples
from helpers.serve.windows import Sessions, Window, respond
from helpers.workshop.training import NOTICE
from tests.tiny import picture, questions

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio.queueing")

FIRST, SECOND = "What is in the picture?", "What colour is the star?"
GREEDY = {"max_new_tokens": 8}
USUAL = (8, False, 0.7, 0.9)  # what the page's usual controls are set to: tokens first


@pytest.fixture(scope="module")
def page(pipeline, tmp_path_factory):
    """Serve the page of the small model, and return its `blocks` and its `address`."""
    folder = tmp_path_factory.mktemp("examples")
    examples = save_examples(folder, [(picture(), questions(1)[0][1])])
    blocks = build_page(pipeline, title="Small shapes", examples=examples)
    yield SimpleNamespace(blocks=blocks, address=open_page(blocks))
    blocks.close()


@pytest.fixture(scope="module")
def picture_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{number}.png" for number in range(2)]
    for number, path in enumerate(paths):
        picture(number).save(path)
    return [gallery(path) for path in paths]


def gallery(*paths) -> list[dict]:
    """Return what a page for several pictures sends of files."""
    return [{"image": handle_file(path), "caption": None} for path in paths]


class Visitor:
    """One browser window: its session, and the chat that it shows."""

    def __init__(self, address: str) -> None:
        self.client = Client(address, verbose=False, analytics_enabled=False)
        self.chat: list[dict] = []

    def ask(self, text: str, image=(), tokens: int = 8):
        """Send a question and return the running job."""
        inputs = (text, list(image), self.chat, tokens, False, 0.7, 0.9)
        return self.client.submit(*inputs, api_name="/ask")

    def answer(self, text: str, image=(), tokens: int = 8) -> str:
        job = self.ask(text, image, tokens)
        self.chat = job.result(timeout=60)[0]
        assert job.outputs()[0][1] == ""  # the question's field, at once
        return content(self.chat[-1])

    def press(self, name: str):
        return self.client.predict(api_name=name)


def content(message: dict) -> str:
    """Return a message's text as the page has it, without the times under it."""
    text = message["content"]
    text = text if isinstance(text, str) else "".join(part["text"] for part in text)
    return text.partition("\n\n<small>")[0]


def expected_answers(pipeline, *turns) -> list[str]:
    """Return the answers of a conversation that no page is between."""
    conversation = pipeline.conversation()
    return [conversation.ask(text, images, **GREEDY).text for text, images in turns]


@pytest.fixture
def window(page):
    visitor = Visitor(page.address)
    yield visitor
    visitor.client.close()


# The page in use


def test_two_questions_about_a_picture(window, pipeline, picture_files):
    first = window.answer(FIRST, picture_files[0])
    second = window.answer(SECOND, picture_files[0])
    assert [first, second] == expected_answers(pipeline, (FIRST, [picture()]), (SECOND, []))
    assert [message["role"] for message in window.chat] == ["user", "assistant"] * 2
    assert [content(message) for message in window.chat[::2]] == [FIRST, SECOND]
    assert re.search(r"first token \d+ ms, then [\d.]+ ms each", str(window.chat[-1]))


def test_a_question_without_a_picture(window, pipeline):
    assert [window.answer(FIRST)] == expected_answers(pipeline, (FIRST, []))


def test_white_space_around_a_question_is_none_of_it(window, pipeline):
    assert [window.answer(f"  {FIRST}\n")] == expected_answers(pipeline, (FIRST, []))
    assert content(window.chat[0]) == FIRST


def test_an_answer_streams_in(window, slowly):
    job = window.ask(FIRST, tokens=20)
    texts = [content(chat[-1]) for chat, _ in job]
    assert texts[0] == "" and len(set(texts)) > 2
    assert all(late.startswith(early.strip()) for early, late in pairwise(texts))


def test_another_picture_starts_anew(window, pipeline, picture_files):
    window.answer(FIRST, picture_files[0])
    second = window.answer(FIRST, picture_files[1])
    assert [second] == expected_answers(pipeline, (FIRST, [picture(1)]))


def test_several_pictures(window, pipeline, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for number, path in enumerate(paths):
        picture(number).save(path)
    expected = expected_answers(pipeline, (FIRST, [picture(0), picture(1)]))
    assert [window.answer(FIRST, gallery(*paths))] == expected


def test_a_video_among_the_pictures_is_told(window, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"no picture")
    window.chat = window.ask(FIRST, [{"video": handle_file(path)}]).result(timeout=60)[0]
    assert "clip.mp4" in content(window.chat[-1]) and "⚠️" in content(window.chat[-1])


def test_a_model_for_one_picture(pipeline, picture_files, monkeypatch):
    monkeypatch.setattr(pipeline.processor, "most_pictures", 1)
    blocks = build_page(pipeline, title="One picture")
    visitor = Visitor(open_page(blocks))
    try:
        inputs = (FIRST, picture_files[0][0]["image"], [], *USUAL)
        chat, _ = visitor.client.predict(*inputs, api_name="/ask")
        assert [content(chat[-1])] == expected_answers(pipeline, (FIRST, [picture()]))
    finally:
        visitor.client.close()
        blocks.close()


def test_a_page_takes_the_place_of_the_former_of_its_title(pipeline):
    former, page, other = (build_page(pipeline, title=title) for title in ("A", "A", "B"))
    try:
        first = open_page(former)
        open_page(other)
        with pytest.raises(SettingsError, match="from 1 to 65535"):
            open_page(page, port=99_999)
        assert httpx.get(first).status_code == 200  # what cannot be opened closes nothing
        port = former.server_port
        assert open_page(page, port=port) == first
        assert (former.is_running, page.is_running, other.is_running) == (False, True, True)
        assert httpx.get(first).status_code == 200
    finally:
        for blocks in (former, page, other):
            blocks.close()


def test_no_upload_outlives_the_page(pipeline, tmp_path):
    """Not even one whose window never said that it has it."""
    blocks = build_page(pipeline, title="Closed")
    address = open_page(blocks)
    picture().save(tmp_path / "left.png")
    files = {"files": ("left.png", (tmp_path / "left.png").read_bytes())}
    uploads = [Path(path) for path in httpx.post(f"{address}gradio_api/upload", files=files).json()]
    assert [path.name for path in uploads] == ["left.png"] and uploads[0].exists()
    blocks.close()
    assert not uploads[0].exists()


@pytest.mark.parametrize("size", [1000, 200_000])
def test_an_upload_on_a_full_disk_is_refused(page, full_disk, monkeypatch, size, caplog):
    """Also a small one, whose bytes are written when its file is closed."""
    monkeypatch.setattr(page.blocks.app, "uploaded_file_dir", str(full_disk))
    files = {"files": ("left.png", bytes(size))}
    response = httpx.post(f"{page.address}gradio_api/upload", files=files)
    sentence = "The upload cannot be kept (No space left on device)."
    assert (response.status_code, response.text) == (400, sentence)
    assert [path.name for path in full_disk.iterdir()] == ["filling"]
    assert not caplog.records


def test_an_upload_whose_window_is_closed_leaves_nothing(page, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(page.blocks.app, "uploaded_file_dir", str(tmp_path))
    place = urlsplit(page.address)
    head = (
        "POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        '--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    )
    with socket.create_connection((place.hostname, place.port)) as connection:
        connection.sendall(head.encode() + bytes(100_000))
        wait_until(lambda: list(tmp_path.iterdir()))
    wait_until(lambda: not list(tmp_path.iterdir()))
    assert not caplog.records


def wait_until(condition) -> None:
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    assert condition()


def test_a_question_that_waits_shows_its_place(page, pipeline, slowly):
    slowly.seconds = 0.2
    visitors = [Visitor(page.address) for _ in range(3)]
    jobs = []
    for visitor in visitors:
        jobs.append(visitor.ask(FIRST))
        time.sleep(0.3)
    chats = [[content(chat[-1]) for chat, _ in job] for job in jobs]
    assert not any("waiting" in text for text in chats[0])
    assert any("before this one: 1" in text for text in chats[1])
    assert any("before this one: 2" in text for text in chats[2])
    assert [texts[-1] for texts in chats] == expected_answers(pipeline, (FIRST, [])) * 3
    for visitor in visitors:
        visitor.client.close()


def test_windows_are_kept_apart(page, pipeline, picture_files):
    visitors = [Visitor(page.address), Visitor(page.address)]
    for text in (FIRST, SECOND):
        jobs = [visitor.ask(text, picture_files[number]) for number, visitor in enumerate(visitors)]
        for visitor, job in zip(visitors, jobs, strict=True):
            visitor.chat = job.result(timeout=60)[0]
    for number, visitor in enumerate(visitors):
        answers = [content(message) for message in visitor.chat[1::2]]
        assert answers == expected_answers(pipeline, (FIRST, [picture(number)]), (SECOND, []))
        visitor.client.close()


def test_clear_forgets(window, pipeline, picture_files):
    window.answer(FIRST, picture_files[0])
    window.chat = window.press("/forget")
    assert window.chat == []
    second = window.answer(SECOND, picture_files[0])
    assert [second] == expected_answers(pipeline, (SECOND, [picture()]))


def test_stop_ends_the_answer(window, slowly):
    job = window.ask(FIRST, tokens=400)
    for chat, _ in job:
        if len(content(chat[-1])) > 3:
            break
    window.press("/stop_answer")
    started = time.monotonic()
    window.chat = job.result(timeout=60)[0]
    assert time.monotonic() - started < 5  # it would have gone on for twelve
    assert len(content(window.chat[-1])) > 3
    assert window.answer(SECOND)


def test_stop_of_one_window_leaves_the_answer_of_the_other(page, pipeline, slowly):
    visitors = [Visitor(page.address), Visitor(page.address)]
    job = visitors[0].ask(FIRST)
    visitors[1].press("/stop_answer")
    assert [content(job.result(timeout=60)[0][-1])] == expected_answers(pipeline, (FIRST, []))
    for visitor in visitors:
        visitor.client.close()


TOO_LONG = "What? " * 600


def test_an_error_is_one_sentence_in_the_chat(window):
    message = window.answer(TOO_LONG)
    assert "but the model's context holds 512; ask less or start a new one." in message
    assert "\n" not in message
    assert window.answer(FIRST)


def test_an_answer_is_given_anew(window, pipeline, picture_files):
    first = window.answer(FIRST, picture_files[0])
    window.answer(SECOND, picture_files[0])
    window.chat = window.client.predict(window.chat, *USUAL, api_name="/regenerate")
    assert [content(message) for message in window.chat[::2]] == [FIRST, SECOND]
    answers = [content(message) for message in window.chat[1::2]]
    assert answers == expected_answers(pipeline, (FIRST, [picture()]), (SECOND, []))
    assert answers[0] == first
    third = window.answer(FIRST, picture_files[0])
    turns = ((FIRST, [picture()]), (SECOND, []), (FIRST, []))
    assert third == expected_answers(pipeline, *turns)[-1]


def test_nothing_to_give_anew(window):
    assert window.client.predict([], *USUAL, api_name="/regenerate") == []


def test_a_question_that_failed_is_asked_anew(window):
    window.answer(FIRST)
    window.answer(TOO_LONG)
    window.chat = window.client.predict(window.chat, *USUAL, api_name="/regenerate")
    assert len(window.chat) == 4 and content(window.chat[-1]).startswith("⚠️ The conversation would")
    assert window.answer(FIRST)


# A page's own controls

CONTROLS = (
    controls.Radio("Decode type", {"beams": {}, "sampling": {"do_sample": True, "num_beams": 1}}),
    controls.Slider("num_beams", "Number of beams", 1, 8, value=3, step=1),
    controls.Slider("top_p", "Top-p", 0.1, 1, value=0.8, step=0.05),
)


@pytest.mark.parametrize(
    ("values", "options"),
    [
        (("beams", 3.0, 0.8), {"num_beams": 3, "top_p": 0.8}),
        (("sampling", 3.0, 0.8), {"do_sample": True, "num_beams": 1, "top_p": 0.8}),
    ],
)
def test_what_controls_are_set_to(values, options):
    settings = controls.options_of(CONTROLS, values)
    assert settings == options
    assert isinstance(settings["num_beams"], int)


def test_a_choice_that_is_none_is_told():
    with pytest.raises(SettingsError, match="Decode type is empty; it should be beams or sampling"):
        controls.options_of(CONTROLS, (None, 3, 0.8))


@pytest.mark.parametrize(
    ("page_controls", "values", "sliders"),
    [
        (controls.SAMPLING, (False, 0.7, 0.9), (False, False)),
        (controls.SAMPLING, (True, None, 0.9), (True, True)),
        (CONTROLS, ("beams", 3, 0.8), (True, False)),
        (CONTROLS, ("sampling", 3, 0.8), (False, True)),
        (CONTROLS, (None, 3, 0.8), (True, False)),  # which a program may send
    ],
)
def test_which_controls_change_an_answer(page_controls, values, sliders):
    """The one that chooses always does; of the others, those that the choice leaves."""
    assert controls.effects(page_controls, values) == [True, *sliders]


def test_what_changes_nothing_is_greyed_from_the_start(page):
    labels = {
        component["props"]["label"]: component["props"].get("interactive")
        for component in page.blocks.get_config_file()["components"]
        if component["type"] in ("slider", "checkbox")
    }
    assert [label for label, is_free in labels.items() if is_free is False] == [
        "Temperature",
        "Top-p",
    ]


def test_a_page_with_controls_of_its_own(pipeline):
    blocks = build_page(pipeline, title="Beams", controls=CONTROLS)
    visitor = Visitor(open_page(blocks))
    try:
        job = visitor.client.submit(FIRST, [], [], 8, "beams", 3, 0.8, api_name="/ask")
        (chat, _), expected = job.result(timeout=60), pipeline.ask(FIRST, num_beams=3, **GREEDY)
        assert content(chat[-1]) == expected.text
        assert "3 beams, all at once after" in str(chat[-1])
        assert windows.AT_ONCE in str(job.outputs()[0][0][-1])
        chat = visitor.client.predict(chat, 8, "sampling", 3, 0.8, api_name="/regenerate")
        assert len(chat) == 2 and "first token" in str(chat[-1])
        labels = {block.label for block in blocks.blocks.values() if hasattr(block, "label")}
        assert {"Decode type", "Number of beams", "Top-p", "Maximum new tokens"} <= labels
        assert "Temperature" not in labels
    finally:
        visitor.client.close()
        blocks.close()


# Without a server


def test_an_answer_that_is_computed_is_stopped_to_be_given_anew(pipeline):
    window = Window(pipeline)
    reply = window.ask(FIRST, [picture()], {"max_new_tokens": 400})
    assert window.take_back() == (FIRST, [picture()])
    assert len(reply.token_ids) < 400 and not reply.conversation.messages
    assert window.take_back() is None


def test_a_question_behind_a_stopped_answer_has_no_pictures_again(pipeline):
    """Also of an answer that was stopped while another window's was computed."""
    window, other = Window(pipeline), Window(pipeline)
    other.ask(FIRST, [], {"max_new_tokens": 400})
    for question in (FIRST, "And now?"):
        reply = window.ask(question, [picture()], {"max_new_tokens": 400})
        window.stop.set()
    other.stop.set()
    reply.wait()
    assert [content_of(message)[1] for message in reply.conversation.messages] == [1, 0, 0, 0]


def test_the_chat_shows_the_question_at_once(pipeline):
    chats = respond(Window(pipeline), FIRST, [], [], GREEDY)
    assert [content(message) for message in next(chats)] == [FIRST, ""]
    assert content(list(chats)[-1][-1])


def test_options_that_cannot_be_are_told(pipeline):
    *_, chat = respond(Window(pipeline), FIRST, [], [], {"max_new_tokens": 0})
    assert content(chat[-1]).startswith("⚠️ max_new_tokens is 0; it should be")


def test_a_window_that_is_closed_leaves_nothing(pipeline):
    sessions = Sessions(pipeline)
    reply = sessions.window("one").ask(FIRST, [picture()], {"max_new_tokens": 400})
    sessions.close("one")
    assert len(reply.token_ids) < 400 and not sessions.windows
    sessions.close("one")


def test_of_too_many_windows_the_longest_unused_is_forgotten(pipeline, monkeypatch):
    """As of a program that asks in a loop, each time in a session that nobody closes."""
    monkeypatch.setattr(windows, "MOST_WINDOWS", 2)
    sessions = Sessions(pipeline)
    first, second = sessions.window("1"), sessions.window("2")
    reply = second.ask(FIRST, [], GREEDY)
    assert sessions.window("1") is first
    sessions.window("3")
    assert list(sessions.windows) == ["1", "3"]
    assert reply.text and sessions.window("2") is not second


@pytest.mark.parametrize("updates", [1, 3])
def test_a_window_that_is_cleared_ends_empty(pipeline, updates):
    """Whatever it was shown before: its question, or some of the answer too."""
    window = Window(pipeline)
    chats = respond(window, FIRST, [], [], {"max_new_tokens": 400})
    for _ in range(updates):
        assert next(chats)
    window.clear()
    assert list(chats)[-1] == []


def test_files_go_with_the_last_window_that_has_them(pipeline, tmp_path):
    sessions, files = Sessions(pipeline), [tmp_path / name for name in ("a", "b", "example")]
    for file in files:
        file.touch()
    sessions.uploaded("examples", [str(files[2])])
    sessions.uploaded("one", map(str, files))
    sessions.uploaded("two", [str(files[1])])
    sessions.close("one")
    assert [file.exists() for file in files] == [False, True, True]
    sessions.close("two")
    assert [file.exists() for file in files] == [False, False, True]
    sessions.close("two")


def test_pictures_of_other_sizes_are_other_pictures(pipeline):
    window = Window(pipeline)
    sizes = ((64, 32), (32, 64))
    first, second = (window.ask(FIRST, [Image.new("L", size)], GREEDY) for size in sizes)
    assert first.conversation is not second.conversation
    second.wait()


def test_an_answer_with_boxes_comes_with_its_picture(pipeline, tmp_path, monkeypatch):
    """The words of the answer are given; what reads, draws and shows them is the real path."""
    answer = '[{"bbox_2d": [100, 200, 300, 400], "label": "red star"}]'
    window = Window(pipeline, tmp_path)
    pieces = [AnswerPiece(answer)]
    monkeypatch.setattr(Reply, "pieces", lambda reply: reply.wait() and iter(pieces))
    *_, chat = respond(window, FIRST, [picture()], [], GREEDY)
    words, drawing = chat[-1]["content"]
    assert words.startswith(answer)
    assert drawing["alt_text"] == "The picture with the boxes of this answer"
    picture_with_boxes = Image.open(drawing["path"])
    expected = draw_boxes(picture(), [Box(0.1, 0.2, 0.3, 0.4, "red star")])
    assert picture_with_boxes.tobytes() == expected.tobytes()
    window.clear()
    assert list(tmp_path.iterdir()) == []


def test_of_several_pictures_none_gets_the_boxes(pipeline, tmp_path):
    window = Window(pipeline, tmp_path)
    window.last_question = (FIRST, [picture(), picture()], None)
    assert window.draw_boxes('{"bbox_2d": [100, 200, 300, 400]}') is None
    window.last_question = (FIRST, [picture()], None)
    assert window.draw_boxes("The star is red.") is None
    assert list(tmp_path.iterdir()) == []


# The server


def test_a_port_that_another_page_took_meanwhile(pipeline, monkeypatch):
    find_port, page = demo.free_port, build_page(pipeline, title="One of two")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        ports = iter([other.getsockname()[1]])
        monkeypatch.setattr(demo, "free_port", lambda port: next(ports, None) or find_port(port))
        address = open_page(page)
        assert httpx.get(address).status_code == 200
        assert urlsplit(address).port != other.getsockname()[1]
    page.close()


def test_only_this_computer_is_served(page):
    port = urlsplit(page.address).port
    connections = psutil.Process().net_connections("tcp")
    addresses = [connection.laddr for connection in connections if connection.status == "LISTEN"]
    assert {address.ip for address in addresses if address.port == port} == {"127.0.0.1"}
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", port), timeout=2):
        pass


def test_the_page_is_not_shared_and_has_a_notice(page):
    assert urlsplit(page.address).hostname == "127.0.0.1"
    assert not page.blocks.share and page.blocks.share_url is None
    html = httpx.get(page.address).text
    assert NOTICE in html and "Small shapes" in html


def test_the_terms_of_use_are_on_the_page(pipeline):
    blocks = build_page(pipeline, title="Small shapes", terms="For research only.")
    components = blocks.get_config_file()["components"]
    texts = [str(component["props"].get("value")) for component in components]
    assert any("For research only." in text and NOTICE in text for text in texts)


LOADED = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=["']([^"']+)""")
IN_STYLES = re.compile(r"""(?:url\(|@import)\s*["']?(?:url\()?["']?((?:https?:)?//[^"')\s]+)""")


def test_the_page_loads_nothing_from_elsewhere(page):
    html = httpx.get(page.address).text
    loaded = LOADED.findall(html)
    assert loaded
    styles = IN_STYLES.findall(html + httpx.get(f"{page.address}theme.css").text)
    urls = [*loaded, *page.blocks.config["stylesheets"], *styles]
    hosts = {urlsplit(url).hostname for url in urls}
    assert hosts <= {None, "127.0.0.1", "localhost"}, hosts


def test_other_files_are_not_served(page, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("mine", encoding="utf-8")
    for prefix in ("gradio_api/file=", "file="):
        reply = httpx.get(f"{page.address}{prefix}{secret}")
        assert reply.status_code in (403, 404) and "mine" not in reply.text
