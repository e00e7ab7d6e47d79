"""The measures for real rain, on rain of which the truth is known: drawn over photographs."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

skimage_data = pytest.importorskip("skimage.data")

from unrain.lab.data.rain import StreakRain, add_layer  # noqa: E402
from unrain.lab.metrics import streaks  # noqa: E402

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg", "ihc.png")
RAIN = StreakRain(
    direction=(-20, 20), length=(20, 50), width=(0.8, 1.5), density=(0.002, 0.006), intensity=(60, 120)
)


def blend(one, other, share):
    return np.rint(one * (1 - share) + other * share).astype(np.uint8)


@pytest.fixture(scope="module")
def measured():
    """What every kind of result gives on the whole set."""
    random = np.random.default_rng(3)
    lines = {}
    for name in PHOTOGRAPHS:
        with Image.open(Path(skimage_data.__file__).parent / name) as image:
            image = image.convert("RGB")
            clean = np.array(image.resize((280, 280 * image.height // image.width)))
        rainy = add_layer(clean, RAIN.layer(clean.shape[:2], random))
        where = streaks.Rainy(rainy)
        floats = rainy.astype(np.float32)
        results = {
            f"{share:.2f}": blend(rainy, clean.astype(float), share) for share in (0, 0.25, 0.5, 0.75, 1)
        }
        results |= {
            f"blur {s}": np.rint(gaussian_filter(floats, (s, s, 0))).astype(np.uint8) for s in (0.7, 1, 2, 4)
        }
        results["flat"] = np.full_like(rainy, 128)
        results["fainter"] = rainy // 2
        results["blurred clean"] = np.rint(gaussian_filter(clean.astype(np.float32), (1, 1, 0))).astype(
            np.uint8
        )
        for kind, result in results.items():
            lines.setdefault(kind, []).append(where.compare(result))
    return lines


def test_the_share_removed_runs_from_none_to_all_with_the_truth(measured):
    shares = [streaks.removed(measured[f"{share:.2f}"]) for share in (0, 0.25, 0.5, 0.75, 1)]
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert min(np.diff(shares)) > 0.05
    assert shares[-1] == pytest.approx(1, abs=0.25)


def test_blurring_is_not_rewarded(measured):
    for sigma in (0.7, 1, 2, 4):
        assert streaks.removed(measured[f"blur {sigma}"]) < 0.2, sigma
    assert streaks.removed(measured["flat"]) < 0.05
    assert streaks.removed(measured["blurred clean"]) < streaks.removed(measured["1.00"]) - 0.1


def test_contrast_alone_removes_nothing(measured):
    assert streaks.removed(measured["fainter"]) == pytest.approx(0, abs=0.03)


def test_what_changed_away_from_streaks(measured):
    def changed(lines):
        return np.mean([one.away for one in lines if one.away is not None])

    assert changed(measured["0.00"]) == 0
    # The clean picture differs where the rain was, and hardly elsewhere.
    assert changed(measured["1.00"]) < 1.5
    assert changed(measured["blur 1"]) > 2 * changed(measured["1.00"])
    assert changed(measured["flat"]) > 20


@pytest.mark.parametrize("direction", [-40, -15, 0, 20, 45])
def test_the_direction_of_the_rain_is_found(direction):
    clean = np.full((160, 200, 3), 90, np.uint8)
    rain = StreakRain(direction=(direction, direction), length=(40, 50), width=(1, 1.2), depths=(1, 1))
    layer = rain.layer((160, 200), np.random.default_rng(0))
    assert abs(streaks.Rainy(add_layer(clean, layer)).direction - direction) <= 5


def test_only_pictures_with_streaks_count():
    rainy = streaks.Lines(excess=0.2, rainy_excess=1.0, kept=1.0, away=1.0)
    clean = streaks.Lines(excess=-5.0, rainy_excess=0.1, kept=0.1, away=3.0)
    assert streaks.removed([rainy, clean]) == pytest.approx(0.8)


def test_pictures_without_rain_have_no_share():
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (96, 96, 3), dtype=np.uint8) for _ in range(3)]
    # Lines across the rain's possible directions only.
    bars = np.repeat((np.arange(96) % 8 < 2)[:, None] * np.uint8(200), 96, 1)[..., None].repeat(3, -1)
    lines = [streaks.Rainy(picture).compare(picture) for picture in (bars, bars)]
    assert streaks.removed(lines) is None
    flat = np.full((64, 64, 3), 77, np.uint8)
    assert streaks.removed([streaks.Rainy(flat).compare(flat)]) is None
    assert all(streaks.Rainy(picture).compare(picture).kept == 1 for picture in noise)
    with pytest.raises(ValueError, match="differ in size"):
        streaks.Rainy(flat).compare(flat[1:])
