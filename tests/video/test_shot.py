"""Cuts are found, motion and rain are none."""

from dataclasses import replace

import numpy as np
import pytest

from toys import natural
from toys_video import Same, clip, run
from unrain.derainer import Derained, Derainer
from unrain.video.shot import Shot


@pytest.mark.parametrize("deep", [False, True])
def test_another_scene_starts_a_shot_and_the_same_one_with_motion_and_rain_does_not(deep):
    y, x = np.mgrid[:240, :320]
    waves = (128 + 60 * np.sin(x / 25) + 60 * np.cos(y / 20)).astype(np.uint8)
    scene = np.repeat(waves[..., None], 3, axis=2)
    rain = np.random.default_rng(0).integers(0, 60, (240, 320, 1)) * (np.arange(320) % 9 == 0)[None, :, None]
    rainy = np.minimum(scene.astype(int) + rain, 255).astype(np.uint8)
    frames = [scene, np.roll(scene, 3, axis=1), rainy, 255 - scene, 255 - scene]
    shot = Shot()
    starts = [shot.starts(frame.astype(np.uint16) * 257 if deep else frame) for frame in frames]
    assert starts == [True, False, False, True, False]


def test_a_frame_of_another_size_starts_a_shot():
    shot = Shot()
    assert shot.starts(natural(100, 100))
    assert shot.starts(natural(50, 100))


def test_a_long_shot_is_looked_at_anew():
    frame, shot = natural(60, 80), Shot()
    starts = [number for number in range(600) if shot.starts(frame)]
    assert starts == [0, 250, 500]


@pytest.mark.parametrize(("share", "expected"), [(0.02, (0,)), (0.2, (1, 0))])
def test_coarser_octaves_are_left_out_where_full_size_gives_the_same(tmp_path, monkeypatch, share, expected):
    asked = []

    def found(self, image, progress=None, *, octaves=None):
        """Take 50 levels away, and by a share of that less without the coarser octave."""
        asked.append(octaves)
        taken = 50 * (1 - share * (octaves == (0,)))
        result = np.clip(image - taken, 0, 255).round().astype(np.uint8)
        return Derained(result, image, 1, octaves or (1, 0), (1.0,) * len(octaves or (1, 0)))

    monkeypatch.setattr(Derainer, "derain", found)
    run(clip(tmp_path / "clip.mp4", frames=3, size=(1280, 48), sound=False), Same())
    assert asked == [None, (0,), expected, expected]


def test_the_octaves_of_a_shot_are_chosen_once(tmp_path, monkeypatch):
    asked = []
    derain = Derainer.derain

    def listening(self, image, progress=None, *, octaves=None):
        asked.append(octaves)
        return derain(self, image, progress=progress, octaves=octaves)

    monkeypatch.setattr(Derainer, "derain", listening)
    run(clip(tmp_path / "clip.mp4", frames=4, size=(1280, 48), sound=False), Same())
    assert asked == [None, (1,), (1,), (1,)]


def test_a_shot_keeps_the_octaves_that_ran_on_most_of_its_first_frame_and_all_frames_are_alike(
    tmp_path, monkeypatch
):
    asked = []
    derain = Derainer.derain

    def patchy(self, image, progress=None, *, octaves=None):
        asked.append(octaves)
        found = derain(self, image, progress=progress, octaves=octaves or (1,))
        return found if octaves else replace(found, octaves=(1, 0), shares=(1.0, 0.3))

    monkeypatch.setattr(Derainer, "derain", patchy)
    run(clip(tmp_path / "clip.mp4", frames=3, size=(1280, 48), sound=False), Same())
    assert asked == [None, (1,), (1,), (1,)]
