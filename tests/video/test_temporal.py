"""The temporal median: still areas get steadier, and nothing else changes."""

import numpy as np
import pytest

from toys import natural
from unrain.video.temporal import TemporalMedian, _differences, _median_of_five


def steadied(rainy, derained):
    median = TemporalMedian()
    results = [
        found
        for pair in enumerate(zip(rainy, derained, strict=True))
        for found in median.push(pair[0], *pair[1])
    ]
    results += median.flush()
    assert [key for key, _ in results] == list(range(len(rainy)))
    return [pixels for _, pixels in results]


def with_rain(clean, left, seed=0):
    """Rain on every frame, and what a network leaves of it."""
    random = np.random.default_rng(seed)
    rainy, derained = [], []
    for frame in clean:
        rain = (random.random(frame.shape[:2]) < 0.1)[..., None] * 100
        rainy.append(np.minimum(frame + rain, 255).astype(np.uint8))
        derained.append(np.minimum(frame + rain * left, 255).astype(np.uint8))
    return rainy, derained


def error(frames, clean):
    return np.mean(
        [np.square(one.astype(float) - other).mean() for one, other in zip(frames, clean, strict=True)]
    )


@pytest.mark.parametrize("pan", [0, 3])
def test_rain_that_was_left_goes(pan):
    scene = natural(96, 160)
    clean = [scene[:, pan * t : 128 + pan * t] for t in range(7)]
    rainy, derained = with_rain(clean, left=0.2)
    # The outermost frames lack neighbours on one side.
    inner = slice(2, -2)
    assert error(steadied(rainy, derained)[inner], clean[inner]) < error(derained[inner], clean[inner]) / 3


def test_clips_without_rain_stay_as_they_are():
    scene = natural(96, 160)
    clean = [scene[:, 2 * t : 128 + 2 * t] for t in range(6)]
    for one, other in zip(steadied(clean, clean), clean, strict=True):
        assert np.array_equal(one, other)


def test_a_scene_cut_is_no_neighbour():
    clean = [natural(64, 96, seed=t // 4) for t in range(8)]
    rainy, derained = with_rain(clean, left=0.1)
    results = steadied(rainy, derained)
    for result, before, truth in zip(results, derained, clean, strict=True):
        assert error([result], [truth]) <= error([before], [truth]) * 1.01


def test_a_moving_thing_stays():
    scene = natural(96, 160)
    clean = []
    for t in range(7):
        frame = scene.copy()
        frame[30:62, 10 + 12 * t : 42 + 12 * t] = 250 - frame[30:62, 10 + 12 * t : 42 + 12 * t]
        clean.append(frame)
    rainy, derained = with_rain(clean, left=0.1)
    for t, result in enumerate(steadied(rainy, derained)):
        place = np.s_[34:58, 14 + 12 * t : 38 + 12 * t]
        assert (
            error([result[place]], [clean[t][place]]) <= error([derained[t][place]], [clean[t][place]]) * 1.05
        )


@pytest.mark.parametrize(
    ("shape", "shift"),
    [
        ((48, 64), (0, 0)),
        ((48, 64), (17, -5)),
        ((49, 70), (-20, 33)),
        ((49, 70), (3, 0)),
        ((7, 5), (0, 0)),
        ((7, 5), (-6, 4)),
        ((16, 100), (0, -40)),
        ((33, 16), (32, 1)),
    ],
)
def test_differences_of_blocks(shape, shift):
    here, there = np.random.default_rng(0).random((2, *shape), np.float32)
    means = _differences(here, there, shift)
    moved = np.roll(there, shift, (0, 1))
    difference = np.abs(here - moved)
    rows, columns = np.indices(shape)
    beyond = (rows - shift[0] < 0) | (rows - shift[0] >= shape[0])
    beyond |= (columns - shift[1] < 0) | (columns - shift[1] >= shape[1])
    difference[beyond] = 1e3
    for (row, column), mean in np.ndenumerate(means):
        block = difference[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        assert mean == pytest.approx(block.mean(dtype=np.float64), rel=1e-5)
    assert means.shape == tuple(-(-side // 16) for side in shape)


def test_sixteen_bits():
    clean = [natural(48, 64)] * 5
    rainy, derained = with_rain(clean, left=0.2)
    wide = steadied([r.astype(np.uint16) * 257 for r in rainy], [d.astype(np.uint16) * 257 for d in derained])
    narrow = steadied(rainy, derained)
    assert wide[2].dtype == np.uint16
    assert np.array_equal(wide[2] // 257, narrow[2])


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_short_clips_come_back_whole(count):
    frames = [natural(20, 30, seed=t) for t in range(count)]
    assert len(steadied(frames, frames)) == count


def test_median_of_five():
    values = np.random.default_rng(0).integers(0, 256, (5, 37, 27, 3), np.uint8)
    assert np.array_equal(_median_of_five(*values), np.median(values, axis=0))
