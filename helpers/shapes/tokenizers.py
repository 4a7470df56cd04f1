"""Small tokenizers of the originals' kinds, trained on the texts of the drawn world.

Each function takes texts, the folder that the tokenizer's files are written into, and `marks`:
special tokens that a family adds. It returns the number of tokens.

What this module does not know: which family needs which kind; its entry says so.
"""

import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import GemmaTokenizer, LlamaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer
from transformers.models.qwen3_5.tokenization_qwen3_5 import Qwen3_5Tokenizer

from helpers.shapes import questions, world
from helpers.sources.checkpoints import write_json

# How Llama 3 cuts a text into words before it looks for tokens: line breaks stay together, whatever
# follows them. transformers has the same as the default of its converter from tiktoken.
_LLAMA_3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT_TOKENS = 640  # in a trained vocabulary, at most: words whole, letters and bytes single


def corpus(number: int = 20000, kinds: Sequence[str] = tuple(questions.KINDS)) -> list[str]:
    """Return the texts that a tokenizer is trained on; printed words are left out.

    So letters stay single tokens, and reading an unseen word is spelling it.
    """
    texts = []
    for _, question in questions.sample_questions(number, seed=0, split="train", kinds=kinds):
        texts += [question.text] if question.kind == "word" else [question.text, question.answer]
    return texts


def byte_level_bpe(
    texts: Iterable[str], specials: Sequence[str] = (), words: str | None = None
) -> Tokenizer:
    """Train a byte-level BPE tokenizer, whose first ids are `specials`.

    `words` is the pattern of what tokens do not reach beyond, GPT-2's by default.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if words is not None:
        trained.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(words), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TEXT_TOKENS,
        min_frequency=2,
        special_tokens=[_special(token) for token in specials],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    return trained


def _special(token: str) -> AddedToken:
    return AddedToken(token, special=True, normalized=False)


def _qwen(
    kind: type[Qwen2Tokenizer | Qwen3_5Tokenizer],
    texts: Iterable[str],
    folder: Path,
    marks: Sequence[str],
) -> int:
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    byte_level_bpe(texts).model.save(str(folder))
    tokenizer = kind(
        vocab=str(folder / "vocab.json"),
        merges=str(folder / "merges.txt"),
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
    )
    tokenizer.add_tokens([_special(token) for token in (*specials, *marks)], special_tokens=True)
    tokenizer.save_pretrained(folder)
    write_json(folder / "added_tokens.json", tokenizer.get_added_vocab())
    return len(tokenizer)


def qwen2(texts: Iterable[str], folder: Path, marks: Sequence[str]) -> int:
    """Train a byte-level BPE tokenizer as Qwen2 uses it; `marks` follow its own three tokens."""
    return _qwen(Qwen2Tokenizer, texts, folder, marks)


def qwen3_5(texts: Iterable[str], folder: Path, marks: Sequence[str]) -> int:
    """Train the same as Qwen3.5 uses it, which keeps letters and their accents in one word."""
    return _qwen(Qwen3_5Tokenizer, texts, folder, marks)


def gpt_neox(texts: Iterable[str], folder: Path, marks: Sequence[str]) -> int:
    """Train a byte-level BPE tokenizer as GPT-NeoX uses it, with `marks` behind all others."""
    end = "<|endoftext|>"
    trained = byte_level_bpe(texts, [end])
    trained.add_special_tokens([_special(token) for token in marks])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained, bos_token=end, eos_token=end)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def llama(texts: Iterable[str], folder: Path, marks: Sequence[str]) -> int:
    """Train a sentencepiece BPE tokenizer as Llama uses it, with ids from 3 on for `marks`."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=trained,
        model_type="bpe",
        vocab_size=TEXT_TOKENS,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        split_digits=True,
        required_chars=world.LETTERS,
        user_defined_symbols=list(marks),
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(trained.getvalue())
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": True} | special
    write_json(folder / "tokenizer_config.json", config)
    return len(LlamaTokenizer.from_pretrained(folder))


def internlm2(texts: Iterable[str], folder: Path, marks: Sequence[str]) -> int:
    """Train a sentencepiece BPE tokenizer, and name its special tokens as InternLM2 does."""
    size = llama(texts, folder, marks)
    tokens = ["<unk>", "<s>", "</s>", *marks]
    special = {str(number): {"content": token} for number, token in enumerate(tokens)}
    write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": special})
    return size


def phi3(texts: Iterable[str], folder: Path, marks: Sequence[str]) -> int:
    """Train a byte-level BPE tokenizer with Phi-3's tokens, then `marks`, in front."""
    chat = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    trained = byte_level_bpe(texts, [*chat, *marks])
    trained.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"eos_token": "<|end|>", "bos_token": chat[0]})
    return trained.get_vocab_size()


def llama3(texts: Iterable[str], folder: Path, marks: Sequence[str]) -> int:
    """Train a byte-level BPE tokenizer as Llama 3 uses it.

    `marks` follow all other tokens and are not counted: Llama 3.2's LM head has no row for
    `<|image|>`.
    """
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"]
    specials += ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    trained = byte_level_bpe(texts, specials, _LLAMA_3_WORDS)
    size = trained.get_vocab_size()
    trained.add_special_tokens([_special(token) for token in marks])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained, bos_token=specials[0], eos_token=specials[-1]
    )
    tokenizer.save_pretrained(folder)
    return size


def gemma(texts: Iterable[str], folder: Path, marks: Sequence[str]) -> int:
    """Train a BPE tokenizer with bytes for what it does not know, as Gemma uses it.

    A space is a letter of its own, and `marks` follow all other tokens.
    """
    specials = ("<pad>", "<eos>", "<bos>", "<unk>")
    single = [f"<0x{number:02X}>" for number in range(256)]
    trained = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split(Regex("(?=▁)"), behavior="isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=TEXT_TOKENS + len(single),
        min_frequency=2,
        special_tokens=[*map(_special, specials), *single],
        initial_alphabet=list(world.LETTERS),
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    model = json.loads(trained.to_str())["model"]
    merges: Any = [tuple(pair) for pair in model["merges"]]  # annotated as texts
    tokenizer = GemmaTokenizer(vocab=model["vocab"], merges=merges)
    tokenizer.add_tokens([_special(token) for token in marks], special_tokens=True)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


TRAINERS: dict[str, Callable[[Iterable[str], Path, Sequence[str]], int]] = {
    trainer.__name__: trainer
    for trainer in (qwen2, qwen3_5, gpt_neox, llama, internlm2, phi3, llama3, gemma)
}
