"""How many answers are computed together fastest on this computer.

Pictures and prompts gain nothing by that, so tokens alone are measured, behind a drawn picture and
a question. What this module does not know: the rows of a job.
"""

import math
from statistics import median

import torch

from helpers.convert.folders import Report
from helpers.measure.evaluation import question_inputs
from helpers.measure.speed import timed
from helpers.resources import available_memory, time_in_words
from helpers.run.batches import Batch, BatchRow
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.shapes.questions import draw_questions

SIZES = (4, 8, 16, 32)
STEPS = 7  # of which the first, where caches are put together, does not count
GAIN = 0.95  # of a token's time that twice as many answers have to come down to
ROOM = 3  # times the memory that caches have taken so far is to be free for twice as many


@torch.inference_mode()
def fastest_batch_size(
    pipeline: VisionLanguagePipeline, *, report: Report = lambda line: None
) -> int:
    """Return how many answers to compute together: the most that gain, of those there is room for.

    Twice as many are tried for as long as each token of an answer takes less time for it.
    """
    picture, question = draw_questions(1, seed=0)[0]
    prepared = question_inputs(pipeline, picture, question.text)
    batch, rows, fastest, least = Batch(pipeline.language_model), list[BatchRow](), 1, math.inf
    before = available_memory()
    for size in SIZES:
        available = available_memory()
        if rows and available < ROOM * (before - available):
            break
        while len(rows) < size:
            cache = pipeline.language_model.new_cache()
            pipeline.language_model.forward(**prepared, past_key_values=cache)
            rows.append(BatchRow(cache, prepared.get("pictures"), token=0))
        times = [timed(lambda: batch.compute(rows))[0] for _ in range(STEPS)]
        seconds = median(times[1:]) / size
        report(f"{size} rows together: {time_in_words(seconds)} a token")
        if seconds > GAIN * least:
            break
        fastest, least = size, seconds
    return fastest
