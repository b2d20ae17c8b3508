"""Images are attributed to the right video at the right time, by their pixels."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longtake.config.stages import WorldConfig
from longtake.errors import ConfigError
from longtake.testing.oracle_calls import caption_requests, clips_of
from longtake.world.log import read_world
from longtake.world.oracle import Oracle
from longtake.world.oracle_frames import FITS, FrameIndex, thumbnail
from longtake.world.oracle_request import OracleRequest, OracleRequestError
from longtake.world.write import story_of, write_world


@pytest.mark.parametrize("max_pixels", [448 * 448, 44 * 44], ids=["as they are", "reduced"])
def test_every_clip_of_20_videos_is_found_by_time_and_without(honest: Oracle, max_pixels: int):
    num = 0
    for video in range(20):
        for request in caption_requests(honest, video, clips_of(honest, video), max_pixels=max_pixels):
            by_time = honest.frames.find(request.images, request.times_s)
            assert (by_time.video, by_time.by_time) == (video, True)
            assert by_time.times_s == pytest.approx(request.times_s, abs=0.006)
            assert honest.frames.find(request.images).video == video
            num += 1
    assert num == 99


def test_wrong_times_are_found_out_and_the_right_ones_told(honest: Oracle):
    clips = clips_of(honest, 3)
    first, second = caption_requests(honest, 3, [clips[0], clips[2]])
    moved = OracleRequest("caption", second.text, first.images)
    sighting = honest.frames.find(moved.images, moved.times_s)
    assert (sighting.video, sighting.by_time) == (3, False)
    assert sighting.times_s[0] < clips[0].stop_s < clips[2].start_s < moved.times_s[0]
    before = honest.counts["frames/wrong_times"]
    assert honest.answer(moved) == honest.answer(first)
    assert honest.counts["frames/wrong_times"] == before + 1


def test_images_of_one_scene_are_told_from_those_of_another_by_a_wide_margin(honest: Oracle):
    """The distance of what is right, beside FITS, and beside that of the second-best video."""
    right, wrong = [], []
    for video in range(20):
        for request in caption_requests(honest, video, clips_of(honest, video)):
            right.append(honest.frames.find(request.images, request.times_s).distance)
            others = np.array([other for other in range(20) if other != video])
            shown = np.stack([_thumbnail(image) for image in request.images])
            wrong.append(honest.frames._at_times(shown, np.array(request.times_s), others).distance)
    assert max(right) < FITS / 2  # 1.75
    assert min(wrong) > 1.5 * FITS  # 8.9


def test_what_is_of_no_video_is_refused(honest: Oracle, tmp_path: Path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    file = io.BytesIO()
    noise.resize((8, 8)).resize((64, 64)).save(file, "JPEG")
    with pytest.raises(OracleRequestError, match="serve the world that the videos are from"):
        honest.answer(OracleRequest("caption", "<times>\n1.00 s\n</times>", (file.getvalue(),)))
    with pytest.raises(OracleRequestError, match="no image"):
        honest.answer(OracleRequest("caption", "<times>\n1.00 s\n</times>", (b"\xff\xd8 not a JPEG",)))
    with pytest.raises(OracleRequestError, match="without images"):
        honest.answer(OracleRequest("caption", "<times>\n1.00 s\n</times>"))


def test_two_worlds_are_known_by_one_index(world_folder: Path, tmp_path: Path):
    write_world(WorldConfig(out=tmp_path / "other", num_videos=2, seconds=(40.0, 60.0), size=64, seed=12, workers=1, variable_rate=True))
    both = Oracle([world_folder, tmp_path / "other"])
    for video in (20, 21):
        for request in caption_requests(both, video, clips_of(both, video)):
            sighting = both.frames.find(request.images, request.times_s)
            assert (sighting.video, sighting.by_time) == (video, True)
            assert sighting.times_s == pytest.approx(request.times_s, abs=0.006)


def test_the_log_is_read_back_as_it_was_drawn(world_folder: Path, tmp_path: Path):
    world = read_world(world_folder)
    assert world.folder == world_folder and world.names[7] == "videos/000007.mp4"
    assert world.stories == tuple(story_of(world.config, index) for index in range(20))
    with pytest.raises(ConfigError, match="longtake world make"):
        read_world(tmp_path)
    (tmp_path / "world.json").write_text((world_folder / "world.json").read_text())
    (tmp_path / "events.jsonl").write_text('{"video": "videos/000000.mp4", "seed": "x"}\n')
    with pytest.raises(ConfigError, match="holds no world"):
        FrameIndex([read_world(tmp_path)])


def _thumbnail(image: bytes) -> np.ndarray:
    return thumbnail(Image.open(io.BytesIO(image)))
