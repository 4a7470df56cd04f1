"""Print what llama.cpp is built with for this processor: `CMAKE_ARGS` for `make peers`.

Its own way, GGML_NATIVE, leaves that to the compiler; here it is what the processor says, so that
figures can name it. What this module does not know: processors other than x86 under
Linux; there, llama.cpp's own way is kept.
"""

from collections.abc import Collection

from helpers.resources import processor_flags

# Options of llama.cpp's ggml/CMakeLists.txt, by what Linux calls the instruction sets they need.
OPTIONS = {
    "GGML_AVX": ("avx",),
    "GGML_AVX2": ("avx2",),
    "GGML_FMA": ("fma",),
    "GGML_F16C": ("f16c",),
    "GGML_BMI2": ("bmi2",),
    "GGML_AVX_VNNI": ("avx_vnni",),
    "GGML_AVX512": ("avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"),
    "GGML_AVX512_VBMI": ("avx512vbmi",),
    "GGML_AVX512_VNNI": ("avx512_vnni",),
    "GGML_AVX512_BF16": ("avx512_bf16",),
    "GGML_AMX_TILE": ("amx_tile",),
    "GGML_AMX_INT8": ("amx_int8",),
    "GGML_AMX_BF16": ("amx_bf16",),
}
LEFT_OUT = ("LLAVA_BUILD", "MTMD_BUILD", "LLAMA_OPENSSL")  # pictures and downloads


def arguments(flags: Collection[str]) -> str:
    """Return options of CMake for a processor with these flags."""
    values = dict.fromkeys(LEFT_OUT, False)
    if "avx" in flags:
        values["GGML_NATIVE"] = False
        values |= {name: set(needs) <= set(flags) for name, needs in OPTIONS.items()}
    return " ".join(f"-D{name}={'ON' if value else 'OFF'}" for name, value in values.items())


if __name__ == "__main__":
    print(arguments(processor_flags()))
