"""The runner of llama.cpp, in the environment that `make peers` makes: the language model only."""

import ctypes
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

from helpers.measure.peers.jobs import Clock, Measure, Settings, serve

STEP = 2**22  # numbers that are written at once
ROOM = 32  # positions of the context behind prompt and answer


def start(settings: Settings) -> tuple[str, Measure]:
    """Return the version of llama.cpp's Python package, and what measures a round."""
    path = Path(settings["place"]) / "language-model-q4_0.gguf"
    llama_cpp.llama_backend_init()
    _write(settings["layout"], path, settings["threads"])
    model = llama_cpp.llama_model_load_from_file(
        str(path).encode(), llama_cpp.llama_model_default_params()
    )
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = settings["prompt_tokens"] + settings["tokens"] + ROOM
    options.n_threads = options.n_threads_batch = settings["threads"]
    context = llama_cpp.llama_init_from_model(model, options)
    vocabulary = settings["layout"]["sizes"]["vocab_size"]
    return llama_cpp.__version__, partial(measure, context, vocabulary, settings)


def _write(layout: dict[str, Any], path: Path, threads: int) -> None:
    """Write random weights in 16 bits, and let llama.cpp make Q4_0 of them."""
    full = path.with_name("language-model-f16.gguf")
    writer = gguf.GGUFWriter(full, layout["architecture"])
    for name, value in layout["sizes"].items():
        getattr(writer, f"add_{name}")(value)
    writer.add_tokenizer_model("none")  # no tokenizer: prompts are ids
    architecture = next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == layout["architecture"])
    names = gguf.get_tensor_name_map(architecture, layout["sizes"]["block_count"])
    shapes = {}
    for name, shape in layout["tensors"].items():
        tensor = names.get_name(name, try_suffixes=(".weight", ".bias"))
        shapes[tensor] = shape
        kind = np.dtype(np.float16 if len(shape) > 1 else np.float32)
        writer.add_tensor_info(tensor, shape, kind, int(np.prod(shape)) * kind.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    generator = np.random.default_rng(0)
    block = generator.normal(scale=0.02, size=STEP).astype(np.float16)
    for shape in shapes.values():
        if len(shape) > 1:
            start = int(generator.integers(STEP))  # elsewhere in each tensor
            writer.write_tensor_data(np.resize(np.roll(block, start), shape))
        else:
            writer.write_tensor_data(np.ones(shape, np.float32))
    writer.close()
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, threads
    code = llama_cpp.llama_model_quantize(
        str(full).encode(), str(path).encode(), ctypes.byref(options)
    )
    full.unlink()
    if code:
        raise RuntimeError(f"llama.cpp could not quantise the weights (code {code})")


def measure(context: Any, vocabulary: int, settings: Settings) -> dict[str, Any]:
    """Return the seconds of a round."""
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    generator = np.random.default_rng(0)
    ids = generator.integers(vocabulary, size=int(settings["prompt_tokens"])).tolist()
    clock = Clock()
    for _ in range(settings["tokens"]):
        ids = [_next_token(context, ids, vocabulary)]
        clock.note()
    first, next_token = clock.first_and_next
    return {
        "image_encoder": None,
        "prompt": first,
        "next_token": next_token,
        "prompt_tokens": settings["prompt_tokens"],
    }


def _next_token(context: Any, ids: list[int], vocabulary: int) -> int:
    """Return the most probable token behind these."""
    tokens = (llama_cpp.llama_token * len(ids))(*ids)
    if code := llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, len(ids))):
        raise RuntimeError(f"llama.cpp could not compute (code {code})")
    logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), (vocabulary,))
    return int(logits.argmax())


if __name__ == "__main__":
    serve(start)
