"""Answers of OpenVINO GenAI, printed as JSON: `python genai_answers.py FOLDER CASES BACKEND`.

Runs in GenAI's own environment, where nothing else of this collection is. A case has a question and
the file of a picture's pixels, or none. BACKEND is SDPA or PA, or BATCH for the pipeline that
Model Server has, which is asked everything at once.
"""

import json
import os
import sys
from pathlib import Path

os.environ["VISION_PREPROCESS"] = "CPP"  # resizes as Pillow does; read when a pipeline is made

import numpy as np
import openvino as ov
import openvino_genai as genai

# ACCURACY does not compile with paged states (PagedCausalConv1D); there, these are as exact.
PAGED = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",  # or activations get 8 bits
}
HINTS = {"SDPA": {"EXECUTION_MODE_HINT": "ACCURACY"}, "PA": PAGED, "BATCH": PAGED}


def pictures_of(case: dict) -> list[ov.Tensor]:
    """Return the pictures of a case, none or one."""
    return [ov.Tensor(np.load(path)[None]) for path in [case["picture"]] if path]


def config_of(pipeline: object, tokens: int) -> genai.GenerationConfig:
    """Return a pipeline's config, the most probable tokens and so many of them."""
    get = getattr(pipeline, "get_generation_config", None) or pipeline.get_config
    config = get()
    config.do_sample, config.max_new_tokens = False, tokens
    return config


def one_by_one(folder: str, cases: list[dict], backend: str) -> list[list[int]]:
    """Return the tokens of each answer of `VLMPipeline`."""
    pipeline = genai.VLMPipeline(folder, "CPU", ATTENTION_BACKEND=backend, **HINTS[backend])
    answers = []

    class Tokens(genai.StreamerBase):
        def write(self, token: int | list[int]) -> genai.StreamingStatus:
            answers[-1] += token if isinstance(token, list) else [token]
            return genai.StreamingStatus.RUNNING

        def end(self) -> None:
            pass

    for case in cases:
        answers.append([])
        config = config_of(pipeline, case["most"])
        images = pictures_of(case)
        pipeline.generate(
            case["question"], images=images, generation_config=config, streamer=Tokens()
        )
    return answers


def at_once(folder: str, cases: list[dict]) -> list[list[int]]:
    """Return the tokens of each answer of `ContinuousBatchingPipeline`, asked together."""
    scheduler = genai.SchedulerConfig()
    pipeline = genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", HINTS["BATCH"])
    handles = []
    for number, case in enumerate(cases):
        config = config_of(pipeline, case["most"])
        handles.append(pipeline.add_request(number, case["question"], pictures_of(case), config))
    while pipeline.has_non_finished_requests():
        pipeline.step()
    return [handle.read_all()[0].generated_ids for handle in handles]


if __name__ == "__main__":
    folder, path, backend = sys.argv[1:]
    cases = json.loads(Path(path).read_text(encoding="utf-8"))
    answers = at_once(folder, cases) if backend == "BATCH" else one_by_one(folder, cases, backend)
    print(json.dumps([list(answer) for answer in answers]))
