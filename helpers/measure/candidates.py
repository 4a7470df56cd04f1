"""What `vlm tune` tries on a processor, and for how long.

What this module does not know: which candidate is faster.
"""

from collections.abc import Iterable

from helpers.graphs.core import core
from helpers.resources import available_memory, has_vnni, instruction_sets, processors
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.run.tuning import Properties

SECONDS_PER_GB = 60  # of weights, between the least and the most seconds
LEAST_SECONDS, MOST_SECONDS = 60, 300
WITHOUT_AVX512 = 2.5  # times as many, since a picture and a prompt take so much longer there

# Groups of 128 are faster still, but took the bundled models' answers up to 7 times as far from
# ACCURACY mode as the default. One that is larger than the weights' group switches them off.
LARGEST_GROUP = 64
LEAST_TO_HALVE = 4  # cores, below which half of them is one
PRECISION, GROUP = "INFERENCE_PRECISION_HINT", "DYNAMIC_QUANTIZATION_GROUP_SIZE"
# What a compiled model says of itself that decides how it computes.
DECISIVE = (PRECISION, GROUP, "KV_CACHE_PRECISION", "INFERENCE_NUM_THREADS", "ENABLE_CPU_PINNING")


def seconds_for(weight_bytes: int) -> float:
    """Return how long tuning a folder with so many bytes of weights may take on this computer."""
    seconds = min(MOST_SECONDS, max(LEAST_SECONDS, SECONDS_PER_GB * weight_bytes / 1e9))
    sets = instruction_sets()
    return seconds * (WITHOUT_AVX512 if sets and "AVX-512" not in sets else 1)


def candidates_of(weight_bytes: int, group: int) -> list[Properties]:
    """Return what is tried for a part, in the order of what it gained where it was measured.

    Each is tried together with what won before it. Activations are quantised dynamically in groups
    of at most `group`, where the processor can. What changes nothing on this processor is left out.
    """
    candidates: list[Properties] = []
    if has_vnni():
        candidates.append({GROUP: group})
    if has_vnni() and has_16_bits():
        candidates.append({PRECISION: "f32", GROUP: group})
    if has_16_bits():
        candidates.append({PRECISION: "f32"})
    # With this hint weights are kept decompressed; one thread with 16 bits can end the process
    # (`safe_options`).
    has_room = available_memory() > 8 * weight_bytes
    if has_16_bits() and processors() > 1 and has_room:
        candidates.append({PRECISION: "f16"})
    candidates += [{"ENABLE_CPU_PINNING": False}, {"ENABLE_HYPER_THREADING": True}]
    # A next token waits for memory, which half of the cores may read as fast, and cores of two
    # kinds wait for the slower ones.
    if processors() >= LEAST_TO_HALVE:
        candidates.append({"INFERENCE_NUM_THREADS": processors() // 2})
    return candidates


def has_16_bits() -> bool:
    """Return whether the processor computes in 16 bits too; else f32 is what all precisions are."""
    precisions = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "BF16" in precisions or "FP16" in precisions


def decisive(pipeline: VisionLanguagePipeline, names: Iterable[str]) -> list[str]:
    """Return what compiled parts say of how they compute: equals need not be measured."""
    parts = [pipeline.parts[name] for name in names]
    return [str(part.get_property(name)) for part in parts for name in DECISIVE]
