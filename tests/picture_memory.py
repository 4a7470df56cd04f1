"""How much memory a picture takes in each family: `python -m tests.picture_memory`, in a process.

Reads lines of JSON, each a view and the path of a picture; writes for each a line with the bytes by
which the process grew at its peak, and why the picture was refused, or null.
"""

import json
import re
import sys
from pathlib import Path

from PIL import Image

from helpers.errors import PictureError
from helpers.inputs.images import open_picture
from helpers.models.families import families
from helpers.models.processors import Processor
from helpers.resources import return_freed_memory

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
PIXEL, BESIDE = 12, 2**29  # bytes that a picture may take: for each pixel of its file, and beside


def views() -> dict[str, Processor]:
    """Return the processors of all families, of an original's sizes, with the usual budget.

    CLIP's come in both settings.
    """
    processors = {}
    for family in families():
        for padding in (True, False) if family.name in ("llava-mpt", "mobilevlm") else (None,):
            config = family.originals[0].config
            processor = family.model.processor_class(Path(), config)
            processor = processor.within(processor.usual_picture_tokens)
            name = family.name
            if padding is not None:
                processor.image_processor.do_pad = padding
                name += ", padded" if padding else ", cropped"
            processors[name] = processor
    return processors


def bytes_of(field: str) -> int:
    """Return a field of what Linux tells of this process's memory."""
    return int(re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text())[1]) * 1024


def growth(processor: Processor, path: str) -> tuple[int, str | None]:
    """Return by how many bytes this process grows at its peak, and why a picture is refused."""
    return_freed_memory()
    start = bytes_of("VmRSS")
    CLEAR.write_text("5")  # the peak is what there is now
    try:
        processor.image_inputs([open_picture(path)])
        refusal = None
    except PictureError as error:
        refusal = str(error)
    return bytes_of("VmHWM") - start, refusal


def main() -> None:
    """Answer each line."""
    processors = views()
    for processor in processors.values():
        processor.image_inputs([Image.new("RGB", (64, 48))])  # what is imported at first use
    for line in sys.stdin:
        name, path = json.loads(line)
        print(json.dumps(growth(processors[name], path)), flush=True)


if __name__ == "__main__":
    main()
