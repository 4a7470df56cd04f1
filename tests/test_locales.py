"""A process whose numbers have a decimal comma writes and reads the same IR as any other."""

import os
import shutil
import subprocess

import pytest
from PIL import Image

from helpers.graphs.part_names import FILES, IMAGE_ENCODER

COMMA = """
comment_char %
escape_char /
LC_CTYPE
END LC_CTYPE
LC_NUMERIC
decimal_point ","
thousands_sep "."
grouping 3;3
END LC_NUMERIC
"""
# As Qt does: after everything was imported. Saving happens in a thread, as a program may.
PROGRAM = """
import ctypes, locale, sys, threading
from pathlib import Path
import openvino as ov
from PIL import Image
from helpers.convert.conversion import save_part
from helpers.graphs.core import core
from helpers.graphs.part_names import IMAGE_ENCODER
from helpers.run.pipeline import VisionLanguagePipeline
folder, made, plain = map(Path, sys.argv[1:])
model = core().read_model(folder / "openvino_vision_embeddings_model.xml")
locale.setlocale(locale.LC_ALL, "comma")
libc = ctypes.CDLL(None)
libc.strtod.restype = ctypes.c_double
assert libc.strtod(b"1,5", None) == 1.5  # this process really has a decimal comma
for saved in (made, plain):
    saved.mkdir()
thread = threading.Thread(target=save_part, args=(model, made, IMAGE_ENCODER))
thread.start()
thread.join()
ov.save_model(model, plain / "as_it_is.xml", compress_to_fp16=False)
pipeline = VisionLanguagePipeline(folder, accuracy=True)
picture = Image.linear_gradient("L").convert("RGB")
features = pipeline.encode_images(**pipeline.image_inputs([picture]))
print(sum(tile.abs().mean().item() for tile in features))
print(libc.strtod(b"1,5", None))
"""


@pytest.fixture(scope="module")
def locales(tmp_path_factory):
    """Return a folder with a locale called `comma`."""
    folder = tmp_path_factory.mktemp("locales")
    (folder / "comma.txt").write_text(COMMA, encoding="utf-8")
    if not shutil.which("localedef"):
        pytest.skip("no locale can be made here")
    subprocess.run(
        ["localedef", "-c", "-i", folder / "comma.txt", folder / "comma"],
        capture_output=True,
        check=False,
    )
    if not (folder / "comma" / "LC_NUMERIC").exists():
        pytest.skip("no locale can be made here")
    return folder


def test_a_decimal_comma(fork, locales, converted, pipeline, tmp_path):
    made, plain = tmp_path / "made", tmp_path / "plain"
    variables = os.environ | {"LOCPATH": str(locales)}
    result = fork.run("-c", PROGRAM, converted, made, plain, environment=variables)
    assert result.returncode == 0, result.stderr
    size, decimal = result.stdout.strip().splitlines()
    assert decimal == "1.5"  # the program's own locale is as it was
    picture = Image.linear_gradient("L").convert("RGB")
    features = pipeline.encode_images(**pipeline.image_inputs([picture]))
    assert float(size) == pytest.approx(
        sum(tile.abs().mean().item() for tile in features), rel=1e-4
    )

    expected = (converted / FILES[IMAGE_ENCODER]).read_text(encoding="utf-8")
    assert 'eps="9.99' in expected
    assert (made / FILES[IMAGE_ENCODER]).read_text(encoding="utf-8") == expected
    # Once OpenVINO writes a point here too, `helpers.upstream.locales` may go.
    as_it_is = (plain / "as_it_is.xml").read_text(encoding="utf-8")
    assert 'eps="9,99' in as_it_is
