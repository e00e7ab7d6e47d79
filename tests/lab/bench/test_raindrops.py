"""Rain that is the same at every size: what it does to a picture, and that it can be repeated."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")

from unrain.lab.bench.options import RAINS
from unrain.lab.bench.raindrops import Drops, draw, fall, rain_layer


def halved(layer, times=1):
    height, width = (side // 2**times for side in layer.shape)
    blocks = layer[: height * 2**times, : width * 2**times].astype(float)
    return blocks.reshape(height, 2**times, width, 2**times).mean(axis=(1, 3))


def one_drop(**changed):
    values = {"x": 0.5, "y": 0.5, "slant": 0.2, "length": 0.4, "sigma": 0.01, "light": 100.0} | changed
    return Drops(**{name: np.array([value]) for name, value in values.items()})


@pytest.mark.parametrize("rain", RAINS)
def test_rain_depends_on_name_and_seed_alone(rain):
    layer = rain_layer(90, 120, rain, name="a")
    assert layer.shape == (90, 120) and layer.dtype == np.uint8 and layer.any()
    assert np.array_equal(layer, rain_layer(90, 120, rain, name="a"))
    assert not np.array_equal(layer, rain_layer(90, 120, rain, name="b"))
    assert not np.array_equal(layer, rain_layer(90, 120, rain, name="a", seed=1))


@pytest.mark.parametrize("times", [1, 2])
def test_rain_to_scale_is_the_same_rain_in_a_larger_picture(times):
    small = rain_layer(240, 320, "scaled", name="a").astype(float)
    large = halved(rain_layer(240 << times, 320 << times, "scaled", name="a"), times)
    other = halved(rain_layer(240 << times, 320 << times, "scaled", name="b"), times)
    assert np.abs(small - large).mean() < 0.06 * small.mean()
    assert np.corrcoef(small.ravel(), large.ravel())[0, 1] > 0.99
    assert np.corrcoef(small.ravel(), other.ravel())[0, 1] < 0.3


def test_fine_rain_is_as_fine_in_a_larger_picture():
    def fineness(rain, side):
        layer = rain_layer(side, side, rain, name="a").astype(float)
        # How much of the light's changes across is lost by halving.
        return np.abs(np.diff(layer, axis=1)).mean() / layer.mean()

    assert np.array_equal(*(rain_layer(480, 640, rain, name="a") for rain in RAINS))
    assert fineness("fine", 1280) == pytest.approx(fineness("fine", 640), rel=0.1)
    assert fineness("scaled", 1280) < 0.7 * fineness("scaled", 640)


def test_a_streak_has_its_light_wherever_its_pixels_fall():
    light = [draw(one_drop(x=0.5 + shift / 100), 100, 100, 100.0).sum() for shift in (0, 0.25, 0.5, 0.8)]
    assert max(light) < 1.01 * min(light)
    # Brightest in the middle, dark at the ends, along its slant.
    layer = draw(one_drop(), 200, 200, 200.0)
    assert layer.max() == pytest.approx(100, abs=1)
    rows = np.flatnonzero(layer.any(axis=1))
    assert rows[-1] - rows[0] == pytest.approx(0.4 * 200 * np.cos(0.2), abs=6)
    left, right = (layer[row].argmax() for row in (rows[10], rows[-10]))
    assert right - left == pytest.approx((rows[-10] - rows[10]) * np.tan(0.2), abs=2)


def test_what_falls_beside_the_picture_is_not_drawn():
    assert not draw(one_drop(x=1.5), 100, 100, 100.0).any()
    assert not draw(one_drop(y=-1.0), 100, 100, 100.0).any()
    assert draw(one_drop(x=1.0, light=1e6), 50, 100, 100.0).max() == 255


def test_drops_are_as_they_fall():
    drops = fall(np.random.default_rng(0))
    # Near ones are wider and longer.
    assert np.corrcoef(drops.sigma, drops.length)[0, 1] > 0.3
    assert drops.light.min() > 0
    many = fall(np.random.default_rng(0), extent=2.0)
    assert len(many.x) == pytest.approx(len(drops.x) * (2.4 / 1.4) ** 2, abs=2)
