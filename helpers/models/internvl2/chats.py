"""The conversation templates of InternVL, as the authors' `conversation.py` names them."""

from dataclasses import dataclass

from helpers.inputs.prompts import SYSTEM_WORDS, Template

# The authors' system message: "You are InternVL, a multimodal large model built by Shanghai AI
# Laboratory and SenseTime, a helpful and harmless assistant."
SYSTEM = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, "
    "是一个有用无害的人工智能助手。"
)
# That of 2.5, which public copies of `conversation.py` give to 3 and 3.5 as well; whether the
# authors changed its words for them is not known here. "You are Shusheng Wanxiang, in English
# InternVL, a multimodal large language model developed by Shanghai AI Laboratory, Tsinghua
# University and partners."
SYSTEM_2_5 = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的"
    "多模态大语言模型。"
)


@dataclass(frozen=True)
class Chat:
    """A conversation template of the authors: its `system` words, and what stands around turns."""

    system: str
    before_system: str
    user: str
    assistant: str
    end: str

    def template(self, system: str | None) -> Template:
        """Return the template with other words for the system, if there are any."""
        words = self.system if system is None else system
        form = f"{self.before_system}{SYSTEM_WORDS}{self.end}"
        beginning = form.replace(SYSTEM_WORDS, words)
        return Template(beginning, self.user, self.end, self.assistant, self.end, system_form=form)


_CHATML = ("<|im_start|>system\n", "<|im_start|>user\n", "<|im_start|>assistant\n")
CHATS = {
    "Hermes-2": Chat(SYSTEM, *_CHATML, "<|im_end|>"),
    "internlm2-chat": Chat(SYSTEM, *_CHATML, "<|im_end|>"),
    "phi3-chat": Chat(SYSTEM, "<|system|>\n", "<|user|>\n", "<|assistant|>\n", "<|end|>"),
    "internvl2_5": Chat(SYSTEM_2_5, *_CHATML, "<|im_end|>\n"),
}
