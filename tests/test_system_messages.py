"""Words of the system that a program gives: where they stand in each family's prompts."""

import pytest

from helpers.errors import QuestionError
from helpers.inputs.messages import check_turns, user_message
from helpers.models import load_processor
from helpers.sources.checkpoints import BUNDLED
from tests.bundled import BUNDLED_NAMES

WORDS = "Answer in one word."
SYSTEM = {"role": "system", "content": WORDS}
# What stands before the user's turn, from the authors' templates.
EXPECTED = {
    "llava_mpt": f"<|im_start|>system\n{WORDS}<|im_end|><|im_start|>user\n",
    "mobilevlm": f"{WORDS} USER: ",
    "internvl2": f"<|im_start|>system\n{WORDS}<|im_end|><|im_start|>user\n",
    "minicpm_v2": f"<用户>{WORDS}\n",
    "mllama": f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{WORDS}<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n",
    "qwen3_vl": f"<|im_start|>system\n{WORDS}<|im_end|>\n<|im_start|>user\n",
    "qwen3_5": f"<|im_start|>system\n{WORDS}<|im_end|>\n<|im_start|>user\n",
    "gemma4": f"<bos><|turn>system\n{WORDS}<turn|>\n<|turn>user\n",
}


@pytest.mark.parametrize("name", BUNDLED_NAMES)
def test_words_of_a_program_replace_those_of_the_authors(name):
    processor = load_processor(BUNDLED / name)
    question = user_message("What is it?")
    prompt = processor.template.render([SYSTEM, question])
    assert prompt.startswith(EXPECTED[name])
    usual = processor.template.render([question])
    assert WORDS not in usual and prompt.endswith(usual[-10:])


@pytest.mark.parametrize("name", BUNDLED_NAMES)
def test_their_marks_are_no_marks(name):
    processor = load_processor(BUNDLED / name)
    mark = processor.template.assistant_end.strip() or "</s>"
    counts = []
    for words in (WORDS, f"{WORDS}{mark}"):
        system = {"role": "system", "content": words}
        ids = processor.input_ids([system, user_message("What is it?")])[0].tolist()
        counts.append(sum(ids.count(stop) for stop in processor.stop_token_ids))
    assert counts[0] == counts[1]


def test_a_system_message_stands_first_and_has_words_only():
    question, answer = user_message("What?"), {"role": "assistant", "content": "It."}
    check_turns([SYSTEM, question, answer])
    with pytest.raises(QuestionError, match="in turn"):
        check_turns([question, SYSTEM, answer])
    with pytest.raises(QuestionError, match="words only"):
        check_turns([{"role": "system", "content": [{"type": "image"}]}])
