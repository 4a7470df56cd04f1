"""Five turns, pictures in between: a prompt is the authors' of the whole talk."""

from functools import partial
from itertools import zip_longest
from types import SimpleNamespace

import pytest
from transformers.generation import LogitsProcessor

from helpers.inputs.messages import answer_message, user_message
from helpers.inputs.prompts import IMAGE
from helpers.models.families import families
from helpers.models.qwen_vision.processor import PICTURE_MARKS
from helpers.run import conversations
from helpers.run.choosing import Chooser
from helpers.run.decoding import text_of
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.shapes import world
from tests.golden_checks import golden_prompts
from tests.tiny import questions
from tests.workers import in_groups

BUNDLED = {family.bundled: family for family in families() if family.checkpoint}
# Which of the authors' prompts in golden data is that of two turns, and how it has a picture there.
GOLDEN = {
    "llava_mpt": ("llava_mpt", "two_turns", "<image>"),
    "mobilevlm": ("mobilevlm", "two_turns", "<image>"),
    "internvl2": ("internvl2/Hermes-2", "two_turns", "<image>"),
    "minicpm_v2": (
        "minicpm_v2",
        "two_turns_overview_only_query_3",
        "<image><unk><unk><unk></image>",
    ),
    "mllama": ("mllama", "two_turns", "<|image|>"),
}
PICTURES = {"gemma4": "<|image|>"}  # in the authors' templates; elsewhere as in Qwen3-VL's
TURNS = [
    ("How many shapes are there?", 1),
    ("What colour is the shape at the top left?", 0),
    ("Which is larger?", 2),
    ("  Describe the picture.\n\nIn one line: 2 words, don't  ask! ", 0),
    ("What is unusual about this picture?", 1),
]
SAMPLED = {"do_sample": True, "temperature": 5.0, "top_p": 1.0, "top_k": 0}


@pytest.fixture(scope="module", params=in_groups(BUNDLED, "dialogue"))
def model(request, bundled_folder):
    """Return the `name` of a bundled model and its `pipeline`."""
    pipeline = VisionLanguagePipeline(bundled_folder(request.param, "int8"), accuracy=True)
    return SimpleNamespace(name=request.param, pipeline=pipeline)


def writing_chooser(token: int, sampling, schema=None) -> Chooser:
    """Return what chooses the tokens of an answer, its second one `token`."""
    chooser = Chooser(sampling, schema)
    chooser.processors.append(Writing(token))
    return chooser


def authors_prompt(name: str, processor, answers: list[str]) -> str:
    """Return the prompt of all turns, its words taken from what the authors' code made of two.

    A picture is `IMAGE` in it.
    """
    if name not in GOLDEN:  # its tokenizer has the authors' own template
        messages = []
        for (question, number), answer in zip_longest(TURNS[: len(answers) + 1], answers):
            messages.append(user_message(question, number))
            messages += [] if answer is None else [answer_message(answer)]
        template = processor.tokenizer.apply_chat_template
        prompt = template(messages, tokenize=False, add_generation_prompt=True)
        return prompt.replace(PICTURES.get(name, "".join(PICTURE_MARKS)), IMAGE)
    family, key, mark = GOLDEN[name]
    beginning, rest = golden_prompts(family)[key].split(mark)
    after_picture, rest = rest.split("What is in the picture?")
    to_answer, rest = rest.split("A cat in a box.")
    to_question, end = rest.split("What colour is it?")
    picture = IMAGE + after_picture
    if name == "llava_mpt":  # each checkpoint has words of its own for the system
        _, user = beginning.split("<|im_end|>", 1)
        beginning = f"<|im_start|>system\n{processor.system}<|im_end|>{user}"
        if processor.has_image_marks:
            picture = f"<im_start>{IMAGE}<im_end>{after_picture}"
    text = beginning
    for turn, (question, number) in enumerate(TURNS):
        text += to_question if turn else ""
        for place in range(number):
            count = f"Image-{place + 1}: " if name == "internvl2" and number > 1 else ""
            text += count + picture
        text += question + (to_answer + answers[turn] if turn < len(answers) else end)
    return text


def authors_ids(name: str, processor, replies, inputs) -> list[int]:
    """Return the ids of that prompt, as the authors make them of it.

    LLaVA's `tokenizer_image_token` takes the texts between pictures one by one, each with a BOS
    that only the first keeps; elsewhere pictures are words of the prompt.
    """
    tokenizer = processor.tokenizer
    prompt = authors_prompt(name, processor, [reply.text for reply in replies[:-1]])
    first, *texts = prompt.split(IMAGE)
    pictures = processor.image_strings(inputs)
    if isinstance(pictures[0], str):
        words = [word for pair in zip(pictures, texts, strict=True) for word in pair]
        return tokenizer(first + "".join(words))["input_ids"]
    ids = tokenizer(first)["input_ids"]
    for picture, text in zip(pictures, texts, strict=True):
        ids += picture
        ids += tokenizer(text)["input_ids"][1 if ids[0] == tokenizer.bos_token_id else 0 :]
    return ids


def talk(pipeline, **options):
    """Ask all questions in one conversation; return it, its replies and the pictures."""
    conversation, replies, pictures = pipeline.conversation(), [], []
    for turn, (question, number) in enumerate(TURNS):
        images = [
            world.draw(scene, cell=40) for scene, _ in questions(10)[2 * turn : 2 * turn + number]
        ]
        if "do_sample" in options:
            options["seed"] = turn
        reply = conversation.ask(question, images, max_new_tokens=24, **options)
        reply.wait()
        replies.append(reply)
        pictures += images
    return conversation, replies, pictures


def answer_of(reply, processor) -> list[int]:
    """Return an answer's tokens without the one that ends it, and without those of pictures."""
    tokens = reply.token_ids
    tokens = tokens[:-1] if tokens and tokens[-1] in processor.stop_token_ids else tokens
    return [token for token in tokens if token not in processor.picture_token_ids]


def around(replies, processor) -> list[list[int]]:
    """Return the tokens before, between and behind the answers of a conversation.

    That the answers are in it as they were generated is checked on the way; what stands before the
    one to come, an empty thought, stands before none of the earlier ones.
    """
    pieces, begin = [], 0
    final, start = replies[-1].prompt_ids, len(processor.start_of_answer_ids)
    for reply in replies:
        end = len(reply.prompt_ids) - (0 if reply is replies[-1] else start)
        pieces.append(final[begin:end])
        assert final[:end] == reply.prompt_ids[:end]
        begin = end
        if reply is not replies[-1]:
            answer = answer_of(reply, processor)
            assert final[begin : begin + len(answer)] == answer
            begin += len(answer)
    return pieces


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["probable", "odd"])
def test_five_turns_have_the_prompt_of_the_authors(model, options):
    """Odd answers, sampled when nearly all tokens are alike, seldom tokenise back to themselves."""
    name, pipeline = model.name, model.pipeline
    processor, tokenizer = pipeline.processor, pipeline.processor.tokenizer
    _, replies, pictures = talk(pipeline, **options)
    ids = authors_ids(name, processor, replies, pipeline.image_inputs(pictures))
    pieces, place = around(replies, processor), 0
    for turn, piece in enumerate(pieces):
        assert ids[place : place + len(piece)] == piece
        place += len(piece)
        if turn < len(replies) - 1:
            following = pieces[turn + 1]
            end = next(
                end
                for end in range(place, len(ids))
                if ids[end : end + len(following)] == following
            )
            assert text_of(tokenizer, ids[place:end]) == replies[turn].text
            place = end
    assert place == len(ids)
    if not options:  # what these answers say is tokenised as they were generated
        assert replies[-1].prompt_ids == ids


@pytest.mark.slow
def test_messages_have_the_prompt_of_the_authors(model):
    """The same talk, kept elsewhere and handed over whole."""
    name, pipeline = model.name, model.pipeline
    processor = pipeline.processor
    conversation, replies, pictures = talk(pipeline)
    inputs = pipeline.image_inputs(pictures)
    ids = processor.input_ids(conversation.messages[:-1], inputs)[0].tolist()
    assert ids == authors_ids(name, processor, replies, inputs)
    again = pipeline.chat(conversation.messages[:-1], max_new_tokens=24)
    assert again.token_ids == replies[-1].token_ids


class Writing(LogitsProcessor):
    """Let the second token of an answer be a certain one."""

    def __init__(self, token: int) -> None:
        self.token, self.steps = token, 0

    def __call__(self, input_ids, scores):
        self.steps += 1
        if self.steps == 2:
            scores[:, self.token] = 1e4
        return scores


@pytest.mark.slow
def test_an_answer_may_hold_any_special_token(model, monkeypatch):
    """A picture's token that the model wrote had no picture, and ended the conversation."""
    pipeline = model.pipeline
    processor = pipeline.processor
    rows = pipeline.language_model.language_model.output("logits").partial_shape[-1].get_length()
    special_tokens = [token for token in processor.tokenizer.added_tokens_decoder if token < rows]
    image = world.draw(questions(1)[0][0], cell=40)
    for token in special_tokens:
        with monkeypatch.context() as patched:
            patched.setattr(conversations, "Chooser", partial(writing_chooser, token))
            conversation = pipeline.conversation()
            first = conversation.ask("Describe the picture.", [image], max_new_tokens=6)
            assert first.token_ids[1] == token
        second = conversation.ask(TURNS[1][0], max_new_tokens=6)
        assert second.token_ids
        assert list(map(second.prompt_ids.count, processor.picture_token_ids)) == list(
            map(first.prompt_ids.count, processor.picture_token_ids)
        )
        conversation.take_back(second)
        third = conversation.ask(TURNS[0][0], [image], max_new_tokens=6)
        assert third.token_ids
