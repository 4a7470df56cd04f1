"""Videos: which frames are read, when they were taken, and what models get of them."""

import json
import os
import sys
import weakref

import av
import numpy as np
import pytest
import torch
from PIL import Image

from helpers.errors import CheckpointError, PictureError, QuestionError
from helpers.inputs import coded_video, images
from helpers.inputs.messages import message_of, pictures_of, with_open_videos
from helpers.inputs.video import Video, open_video, spread
from helpers.models import load_processor
from helpers.models.checks import check_processor
from helpers.models.qwen3_vl import Qwen3VLProcessor
from helpers.sources.checkpoints import BUNDLED, read_json, write_json
from tests.golden_clips import CLIPS, GOLDEN, SIZES, draw_clip

QUESTION = "What moves?"


def everything(number: int, rate: float) -> range:
    return range(number)


def grey(level: int, size=(64, 48)) -> Image.Image:
    return Image.new("RGB", size, (level, level, level))


def levels(video: Video) -> list[int]:
    return [frame.getpixel((9, 9))[0] for frame in video.frames]


def write_coded(path, number: int, rate: int = 25, codec: str = "libx264") -> None:
    """Write a video that becomes brighter by two levels a frame, with a key frame in ten."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={"g": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(number):
            frame = av.VideoFrame.from_image(grey(2 * index))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


# Beside the authors' processor


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_is_prepared_as_transformers_does(name, tmp_path):
    """Pillow resizes pictures and torchvision tensors: they may differ by a level of 255."""
    clip = CLIPS[name]
    expected = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))[name]
    processor = golden_processor(tmp_path, SIZES[clip.sizes])
    video = Video(draw_clip(clip), [number / clip.rate for number in range(clip.frames)])
    inputs = processor.image_inputs([video])
    message = message_of(QUESTION, [], video)
    assert processor.input_ids([message], inputs)[0].tolist() == expected["ids"]
    assert inputs["image_grid_thw"].tolist() == [expected["grid"]]
    patches = np.load(GOLDEN / "patches.npz")[name]
    difference = (inputs["pixel_values"] * 127.5 + 127.5 - torch.from_numpy(patches)).abs()
    is_resized = name in ("enlarged", "made smaller")
    assert difference.max() <= (1.001 if is_resized else 1e-4)
    assert (difference > 0.5).float().mean() <= 0.001  # measured: 0.0003 of the values


def golden_processor(folder, sizes: dict) -> Qwen3VLProcessor:
    """Return a processor with the golden tokenizer and these sizes of videos."""
    for path in GOLDEN.glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    names = ("vision_start", "image", "vision_end", "video")
    size = len(json.loads((GOLDEN / "vocab.json").read_text(encoding="utf-8"))) + 7
    ids = {f"{name}_token_id": size - 4 + number for number, name in enumerate(names)}
    write_json(folder / "video_preprocessor_config.json", {"size": sizes})
    return Qwen3VLProcessor(folder, {"model_type": "qwen3_vl", **ids})


def test_the_budget_counts_for_each_step(tmp_path):
    processor = golden_processor(tmp_path, SIZES["class"])
    processor.picture_tokens = 4
    inputs = processor.image_inputs([Video([grey(9, (400, 200))] * 6)])
    steps, rows, columns = inputs["image_grid_thw"][0].tolist()
    assert (steps, rows * columns // 4) == (3, 2)  # 3 would have another shape


def test_pictures_and_videos_stand_together(tmp_path):
    processor = golden_processor(tmp_path, SIZES["small"])
    video = Video([grey(9, (64, 32))] * 4)
    inputs = processor.image_inputs([grey(3, (256, 256)), video])
    assert inputs["image_grid_thw"].tolist() == [[1, 16, 16], [2, 2, 4]]
    assert inputs["times"] == [[], [0.25, 1.25]]
    assert [len(text) > 0 for text in processor.image_strings(inputs)] == [True, True]


def test_a_frame_too_long_is_refused(tmp_path):
    processor = golden_processor(tmp_path, SIZES["small"])
    with pytest.raises(PictureError, match="more than 200 times as long .* cut it into pieces"):
        processor.image_inputs([Video([grey(1, (402, 2))] * 2)])


@pytest.mark.parametrize(("number", "expected"), [(None, 20), (6, 6)])
def test_a_number_of_frames_in_place_of_a_rate(number, expected, tmp_path):
    processor = golden_processor(tmp_path, SIZES["small"])
    path = tmp_path / "video_preprocessor_config.json"
    frames = {"fps": None, "num_frames": number, "max_frames": None}
    write_json(path, read_json(path) | frames)
    assert len(processor.choose_frames(100, 10.0)) == expected  # of 10 seconds, 2 in each


def test_sizes_that_are_none_are_told_at_once(tmp_path):
    processor = golden_processor(tmp_path, {"height": 30, "width": 40})
    with pytest.raises(CheckpointError, match="video_preprocessor_config.json .* be used"):
        check_processor(processor)


# Files


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.webm", "libvpx-vp9"), ("a.mkv", "libx264"), ("a.mpg", "mpeg2video")],
)
def test_frames_of_coded_videos(tmp_path, name, codec):
    write_coded(tmp_path / name, 100, codec=codec)
    numbers = [0, 3, 17, 41, 42, 77, 99]
    rates = []
    video = open_video(tmp_path / name, lambda count, rate: rates.append((count, rate)) or numbers)
    assert rates == [(100, 25.0)]
    assert levels(video) == pytest.approx([2 * number for number in numbers], abs=4)
    assert video.times == pytest.approx([number / 25 for number in numbers], abs=1e-6)
    assert video.frames[5].getpixel((9, 9))[0] == pytest.approx(154, abs=3)
    assert levels(Video(video.frames[1:3])) == pytest.approx([6, 34], abs=3)


def test_a_video_that_was_cut_off_gives_what_there_is(tmp_path):
    write_coded(tmp_path / "whole.mkv", 100)
    content = (tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "half.mkv").write_bytes(content[: len(content) // 2])
    video = open_video(tmp_path / "half.mkv", everything)
    assert 10 < len(video) < 100
    assert len(levels(video)) == len(video)


def copy_packets(source, target, change, **options: str) -> None:
    """Write the packets of a coded video anew, each as `change` of its number returns it."""
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [packet for packet in old.demux(old.streams.video[0]) if packet.size]
        for number, packet in enumerate(packets):
            copy = change(number, packet)
            copy.stream = stream
            new.mux(copy)


@pytest.mark.parametrize("lost", [10, 19])
def test_a_frame_stays_where_the_next_cannot_be_decoded(tmp_path, lost):
    def without_its_frame(number: int, packet: av.Packet) -> av.Packet:
        if number != lost:
            return packet
        filler = av.Packet(b"\0\0\0\2\x0c\x80")  # which H.264 has for rates that are constant
        filler.pts, filler.dts, filler.time_base = packet.pts, packet.dts, packet.time_base
        return filler

    write_coded(tmp_path / "whole.mp4", 20)
    copy_packets(tmp_path / "whole.mp4", tmp_path / "a.mp4", without_its_frame)
    video = open_video(tmp_path / "a.mp4", everything)
    assert len(video) == len(levels(video)) == 20
    assert levels(video)[lost] == levels(video)[lost - 1]


def test_what_an_editor_cut_off_in_front_is_no_frame(tmp_path):
    """It leaves the packets that later ones need, and marks them."""

    def earlier(number: int, packet: av.Packet) -> av.Packet:
        shift = int(0.2 / packet.time_base)
        packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
        return packet

    write_coded(tmp_path / "whole.mp4", 20)
    options = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    copy_packets(tmp_path / "whole.mp4", tmp_path / "a.mp4", earlier, **options)
    video = open_video(tmp_path / "a.mp4", everything)
    assert len(video) == 15
    assert levels(video) == pytest.approx([2 * number for number in range(5, 20)], abs=4)
    assert video.times == pytest.approx([number / 25 for number in range(15)], abs=1e-6)


def test_a_telephones_video_is_the_right_way_up(tmp_path):
    """How it was held stands beside the pixels: here its right side was down."""
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        picture = grey(0)
        picture.paste(grey(250), (32, 0))
        container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    content = (tmp_path / "a.mp4").read_bytes()
    place = content.index(matrix(1, 0, 0, 1), content.index(b"tkhd"))
    content = content[:place] + matrix(0, 1, -1, 0) + content[place + 36 :]
    (tmp_path / "a.mp4").write_bytes(content)
    (frame,) = open_video(tmp_path / "a.mp4", everything).frames
    assert frame.size == (48, 64)
    assert [frame.getpixel((24, y))[0] for y in (10, 54)] == pytest.approx([0, 250], abs=5)


def matrix(a: int, b: int, c: int, d: int) -> bytes:
    """Return how MP4 has a rotation (ISO 14496-12, 6.2.2)."""
    numbers = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    return b"".join(number.to_bytes(4, "big", signed=True) for number in numbers)


def test_what_is_between_two_frames_is_skipped(tmp_path, monkeypatch):
    """Of a long video few frames are decoded: from the key frame before each on."""
    write_coded(tmp_path / "a.mp4", 100)
    video, frames_read = open_video(tmp_path / "a.mp4", lambda count, rate: [2, 55, 92]), []

    def count(frames, default):
        frames_read.append(next(frames, default))
        return frames_read[-1]

    monkeypatch.setattr(coded_video, "next", count, raising=False)
    assert levels(video) == pytest.approx([4, 110, 184], abs=4)
    assert 3 <= len(frames_read) <= 3 * 10


def test_few_frames_are_in_memory(tmp_path, monkeypatch):
    """A processor reads one frame after another of a long file."""
    write_coded(tmp_path / "long.mp4", 120, rate=4)
    processor = golden_processor(tmp_path, SIZES["small"])
    video = open_video(tmp_path / "long.mp4", everything)
    alive, most = [], []
    monkeypatch.setattr("helpers.models.qwen_vision.videos.open_picture", noting(alive, most))
    assert processor.image_inputs([video])["image_grid_thw"][0, 0] == 60
    assert len(most) == 120 and max(most) <= 4


def noting(alive: list[weakref.ref], most: list[int]):
    def note(frame: Image.Image) -> Image.Image:
        alive.append(weakref.ref(frame))
        most.append(sum(reference() is not None for reference in alive))
        return frame

    return note


def test_pyav_is_imported_for_coded_videos_only(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    grey(1).save(tmp_path / "a.png")
    assert len(open_video(tmp_path / "a.png", everything)) == 1


@pytest.mark.parametrize("ending", ["gif", "png", "webp"])
def test_frames_of_animations_have_their_times(tmp_path, ending):
    pictures = [grey(25 * index) for index in range(10)]
    durations = [100, 300, *[200] * 8]
    options = {"save_all": True, "append_images": pictures[1:], "duration": durations}
    pictures[0].save(tmp_path / f"a.{ending}", **options)
    video = open_video(tmp_path / f"a.{ending}", lambda count, rate: [0, 1, 2, 9])
    assert levels(video) == pytest.approx([0, 25, 50, 225], abs=4)
    assert video.times == pytest.approx([0, 0.1, 0.4, 1.8])
    # Frames whose file says no time stay as long as browsers let them.
    pictures[0].save(tmp_path / f"b.{ending}", **options | {"duration": 0})
    video = open_video(tmp_path / f"b.{ending}", lambda count, rate: [0, 1, 9])
    assert video.times == pytest.approx([0, 0.1, 0.9])


def test_a_folder_of_frames(tmp_path):
    for index in range(10):
        grey(25 * index).save(tmp_path / f"{index:03}.png")
    processor = load_processor(BUNDLED / "internvl2")
    video = open_video(tmp_path, processor.choose_frames)
    expected = [0, 1, 2, 3, 4, 6, 7, 8]  # the formula by hand
    assert levels(Video([Image.open(path) for path in video.frames])) == [25 * n for n in expected]
    assert video.times == [number / 2 for number in expected]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.mp4", b"no video", "cannot be read as a video .* give another file"),
        ("missing.mp4", None, "does not exist; give the path of a video"),
        ("folder", "", "holds no pictures; put a video's frames there"),
    ],
)
def test_what_is_no_video(tmp_path, name, content, message):
    if content:
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        (tmp_path / name).mkdir()
    with pytest.raises(PictureError, match=message):
        open_video(tmp_path / name, everything)


def test_a_video_in_a_closed_folder(closed_folder):
    with pytest.raises(PictureError, match=r"cannot be read as a video \(PermissionError: .*file"):
        open_video(closed_folder / "a.mp4", everything)
    with pytest.raises(PictureError, match=r"cannot be read as a video \(PermissionError: .*file"):
        open_video(closed_folder, everything)


def test_an_animation_that_is_too_large(tmp_path, monkeypatch):
    grey(1).save(tmp_path / "a.gif")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64)
    with pytest.raises(PictureError, match=r"a\.gif is too large; reduce it first\."):
        open_video(tmp_path / "a.gif", everything)
    monkeypatch.undo()
    monkeypatch.setattr(images, "MAXIMUM_PIXELS", 64)  # told before any frame is asked for
    with pytest.raises(PictureError, match=r"a\.gif is too large \(64 x 48 pixels\)"):
        open_video(tmp_path / "a.gif", everything)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_a_pipe_is_no_video(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(PictureError, match=r"as a video \(it is no file\); give another file\."):
        open_video(tmp_path / "a.mp4", everything)


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        samples = np.zeros((1, 800), dtype=np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(PictureError, match="has no pictures in it"):
        open_video(tmp_path / "a.wav", everything)


def test_frames_need_their_times():
    with pytest.raises(QuestionError, match="2 frames but 1 times; give one time"):
        Video([grey(1), grey(2)], [0.0])
    with pytest.raises(QuestionError, match="no frames; give at least one"):
        Video([])


def test_a_video_in_a_message_may_be_a_file(tmp_path):
    write_coded(tmp_path / "a.mp4", 20)
    message = message_of(QUESTION, [], tmp_path / "a.mp4")
    (video,) = pictures_of(with_open_videos(message, lambda count, rate: spread(range(count), 4)))
    assert levels(video) == pytest.approx([4, 14, 24, 32], abs=3)
