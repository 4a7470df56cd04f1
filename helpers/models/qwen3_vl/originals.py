"""The checkpoints of Qwen3-VL that were published, and a small tokenizer for them."""

from helpers.models.qwen_vision.originals import original, tokenizer_of

TOKENIZER = tokenizer_of("qwen2")
ORIGINALS = tuple(
    original(f"qwen3-vl-{name.lower()}", f"Qwen/Qwen3-VL-{name}-Instruct", parameters, TOKENIZER)
    for name, parameters in (("2B", 2.13), ("4B", 4.44), ("8B", 8.77))
)
