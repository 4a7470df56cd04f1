"""InternLM2's tokenizer, rebuilt from its `tokenizer.model` without the authors' code.

The file is sentencepiece's, but `LlamaTokenizer` cannot read it as it was meant: some pieces carry
placeholder names that `tokenizer_config.json` replaces by special tokens at the same ids, and no
space is put in front of a text.

What this module does not know: the authors' clean-up of spaces before punctuation when decoding.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from google.protobuf.message import DecodeError
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from helpers.errors import CheckpointError, unreadable
from helpers.sources.checkpoints import read_json
from helpers.upstream.locales import plain_numbers

with plain_numbers():  # it reads its defaults, `0.9995` for one, as the locale has numbers
    from sentencepiece import sentencepiece_model_pb2

_FORMAT: Any = sentencepiece_model_pb2  # which makes its classes when it is imported
NORMAL: int = _FORMAT.ModelProto.SentencePiece.NORMAL
SPACE = "▁"  # how sentencepiece writes a space
BEGIN, UNKNOWN = "<s>", "<unk>"


class SentencePiece(Protocol):
    """What a sentencepiece model says of one token."""

    piece: str
    score: float
    type: int


def internlm2_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of an InternLM2 checkpoint, which puts `<s>` in front of a text.

    Raises `CheckpointError` for a file that is missing or damaged, and for special tokens that do
    not get the ids that `tokenizer_config.json` gives them.
    """
    settings = read_json(folder / "tokenizer_config.json")
    added = settings.get("added_tokens_decoder", {})
    special = {int(index): token["content"] for index, token in added.items()}
    tokenizer = byte_pair_encoding(read_pieces(folder / "tokenizer.model"), special)
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for _, token in sorted(special.items())]
    )
    begin = tokenizer.token_to_id(BEGIN)
    ids = {index: tokenizer.token_to_id(token) for index, token in special.items()}
    if begin is None or any(actual != index for index, actual in ids.items()):
        raise CheckpointError(
            f"tokenizer_config.json and tokenizer.model in {folder} do not belong together; take "
            "both from the same checkpoint."
        )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, begin)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token="</s>",
        pad_token="</s>",
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def byte_pair_encoding(pieces: Sequence[SentencePiece], special: Mapping[int, str]) -> Tokenizer:
    """Return a tokenizer of these pieces, those at the ids of `special` under its names."""
    names = [special.get(index, piece.piece) for index, piece in enumerate(pieces)]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges_of(pieces, vocabulary),
            unk_token=UNKNOWN,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def read_pieces(path: Path) -> Sequence[SentencePiece]:
    """Return the pieces of a sentencepiece model in the order of their ids, with type and score."""
    model = _FORMAT.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except PermissionError:
        raise CheckpointError(unreadable(path)) from None
    except (OSError, DecodeError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a sentencepiece model ({type(error).__name__}); download it "
            "again."
        ) from None
    return cast(Sequence[SentencePiece], model.pieces)


def merges_of(
    pieces: Sequence[SentencePiece], vocabulary: Mapping[str, int]
) -> list[tuple[str, str]]:
    """Return the pairs that byte-pair encoding joins, those of the best-scored pieces first.

    sentencepiece stores no pairs: any two pieces that make a normal one are a pair. Of one
    piece's pairs the one with the lowest ids comes first.
    """
    merges: list[tuple[str, str]] = []
    for piece in sorted(pieces, key=lambda piece: -piece.score):
        if piece.type != NORMAL:
            continue
        text = piece.piece
        pairs = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        valid = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
        merges += sorted(valid, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    return merges
