"""Memory and disk: what this computer has, what a process takes, and sizes as people read them.

A process's own memory is what it allocated, without the files that it mapped.
"""

import ctypes
import gc
import os
import platform
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from helpers.errors import SettingsError

EVERY = 0.02  # seconds between two looks

# Where Linux says how much memory a group of processes, such as a container, may take, and of which
# groups this process is. Names of files: the limit, what is used, and in `memory.stat` what of it
# are files that make room when needed (kernel documentation: cgroup-v2.rst, cgroup-v1/memory.rst).
CONTROL_GROUPS, GROUPS_OF_PROCESS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
VERSION_2 = ("memory.max", "memory.current", "inactive_file")
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def anonymous_memory(pid: int) -> int:
    """Return the bytes of memory that a process has of its own now; 0 if it is gone."""
    status = Path(f"/proc/{pid}/status")
    with suppress(OSError, psutil.Error):
        if status.exists():
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            return int(fields.get("RssAnon", "0 kB").split()[0]) * 1024
        return psutil.Process(pid).memory_full_info().uss
    return 0


def return_freed_memory() -> None:
    """Give freed memory back to the system: glibc keeps pieces below 32 MiB otherwise."""
    with suppress(AttributeError, OSError, TypeError):  # other C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)


def freeze_objects() -> None:
    """Let looks for garbage pass over all objects of now, in a process that is ours alone.

    A look at those of all packages takes a quarter of a second, and comes at any moment, between
    two tokens too.
    """
    gc.collect()
    gc.freeze()


class Growth:
    """Watches by how many `bytes` this process grows at most inside a `with` block."""

    def __init__(self) -> None:
        self.bytes = 0
        self._start = anonymous_memory(os.getpid())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Growth":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(EVERY):
            self.bytes = max(self.bytes, anonymous_memory(os.getpid()) - self._start)


def available_memory() -> int:
    """Return the bytes of memory that this process may still take, by the limit of a container too.

    That limit is one of Linux's control groups; other systems have what the computer has.
    """
    sizes = [psutil.virtual_memory().available]
    for group, (limit, used, of_files) in _memory_groups():
        with suppress(OSError, ValueError):  # without a limit, there is a word or no file
            most = int((group / limit).read_text())
            lines = (group / "memory.stat").read_text().splitlines()
            files = dict(line.split() for line in lines).get(of_files, "0")
            sizes.append(most - int((group / used).read_text()) + int(files))
    return max(0, min(sizes))


def _memory_groups() -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Yield the control groups that this process is in, each with the names of its files."""
    with suppress(OSError):
        for line in GROUPS_OF_PROCESS.read_text().splitlines():
            _, controllers, place = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            root = CONTROL_GROUPS / "memory" if controllers else CONTROL_GROUPS
            group = root / place.strip("/")
            for folder in (group, *group.parents):
                if folder.is_relative_to(root):
                    yield folder, VERSION_1 if controllers else VERSION_2


def free_disk(folder: Path) -> int:
    """Return the free bytes where `folder` is or will be."""
    place = next(place for place in (folder, *folder.parents) if place.exists())
    return shutil.disk_usage(place).free


def in_words(size: float) -> str:
    """Return a number of bytes as people read it."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def time_in_words(seconds: float) -> str:
    """Return a time as people read it, with three digits: `22.9 ms`, `1.84 s`, `108 s`."""
    return f"{seconds:.3g} s" if seconds >= 0.9995 else f"{seconds * 1000:.3g} ms"


def duration_in_words(seconds: float) -> str:
    """Return how long something still takes, in whole seconds: `45 s`, `2 min 5 s`, `3 h 4 min`."""
    hours, rest = divmod(int(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def path_of(text: str) -> Path:
    """Return a path as people write it where no shell reads it: `~` is a person's home."""
    with suppress(RuntimeError):  # there is no such person, or no home
        return Path(text).expanduser()
    return Path(text)


def text_of(text: str) -> str:
    """Return a text of the command line or of standard input.

    Raises `SettingsError` for bytes that the encoding of the locale lacks, which Python reads as
    halves of characters.
    """
    if not re.search("[\udc80-\udcff]", text):
        return text
    words, encoding = f"The text {text[:40]!r}", sys.getfilesystemencoding()
    if encoding == "utf-8":
        raise SettingsError(f"{words} is not UTF-8; type it anew, or convert its file.")
    raise SettingsError(
        f"{words} has characters that this locale's encoding, {encoding}, lacks; set "
        "PYTHONUTF8=1, or LC_ALL to a locale of UTF-8 such as C.UTF-8."
    )


def this_computer() -> str:
    """Return the free memory and disk of this computer in words."""
    memory = available_memory() / 2**30
    disk = shutil.disk_usage(Path.cwd()).free / 1e9
    return f"{memory:.0f} GiB of memory and {disk:.0f} GB of disk are free here"


def processors() -> int:
    """Return how many of the computer's cores this process may use."""
    process, cores = psutil.Process(), psutil.cpu_count(logical=False) or 1
    allowed = len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else cores
    return min(allowed, cores)


def instruction_sets() -> list[str]:
    """Return which of the processor's instruction sets matter for speed here; [] if unknown."""
    names = {"avx2": "AVX2", "avx512_f": "AVX-512", "avx512_vnni": "VNNI", "avx_vnni": "VNNI"}
    names |= {"avx512_bf16": "BF16", "amx_bf16": "BF16", "amx_int8": "AMX", "amx_fp16": "AMX-FP16"}
    has = _capabilities()
    return list(dict.fromkeys(name for key, name in names.items() if key in has))


def has_vnni() -> bool:
    """Return whether the processor multiplies numbers of 8 bits; True where that is unknown."""
    sets = instruction_sets()
    return "VNNI" in sets or not sets


def has_bfloat16() -> bool:
    """Return whether the processor multiplies numbers of type bfloat16."""
    return not _capabilities().isdisjoint(("avx512_bf16", "amx_bf16", "bf16"))


def _capabilities() -> set[str]:
    """Return what the processor has, as PyTorch calls it."""
    if flags := processor_flags():  # at once, where PyTorch takes seconds to import
        return {"avx512_f" if flag == "avx512f" else flag for flag in flags}
    import torch

    return {name for name, value in torch.cpu.get_capabilities().items() if value}


def processor_model() -> str:
    """Return the numbers that a processor's maker gives its kind, `family 25, model 17`, or ""."""
    with suppress(OSError):
        return family_and_model(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return family_and_model(platform.processor())


def family_and_model(text: str) -> str:
    """Return these numbers of what Linux or Windows says of a processor; "" if it has none."""
    numbers = re.search(r"family\W+(\d+)\s+model\W+(\d+)", text, re.IGNORECASE)
    return f"family {numbers[1]}, model {numbers[2]}" if numbers else ""


def processor_flags() -> set[str]:
    """Return what the processor says it has, as Linux calls it (`/proc/cpuinfo`); else nothing."""
    with suppress(OSError):
        return set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    return set()
