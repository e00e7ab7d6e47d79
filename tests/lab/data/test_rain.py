import numpy as np
import pytest

pytest.importorskip("scipy")
from hypothesis import given, settings
from hypothesis import strategies as st

from unrain.lab.data.rain import (
    Effect,
    LayerRain,
    RainMaker,
    StreakRain,
    add_layer,
    cover,
    grain,
    jpeg,
    sharpen_rain,
    streak,
    veil,
)


def photo(height=40, width=50):
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def layers():
    rng = np.random.default_rng(2)
    return [rng.integers(0, 256, (60, 45), dtype=np.uint8), rng.integers(0, 90, (30, 80), dtype=np.uint8)]


def test_the_rain100_model_is_exact():
    clean, layer = photo(), layers()[0][:40, :45]
    rainy = add_layer(clean[:, :45], layer)
    for y, x, c in ((0, 0, 0), (11, 30, 2), (39, 44, 1)):
        assert rainy[y, x, c] == min(int(clean[y, x, c]) + int(layer[y, x]), 255)


def test_an_unchanged_layer_is_a_crop_of_the_given_one():
    plain = LayerRain(angle=0, scale=(1, 1), intensity=(1, 1), flip=False)
    source = np.arange(60 * 45, dtype=np.uint32).reshape(60, 45) % 251
    source = source.astype(np.uint8)
    made = plain.layer([source], (12, 9), np.random.default_rng(0)).astype(int)
    # Bilinear sampling between pixels: every value lies between those of some 2 x 2 pixels of the source.
    best = min(
        np.abs(made - source[y : y + 12, x : x + 9].astype(int)).mean() for y in range(48) for x in range(36)
    )
    assert best < 30
    flat = np.full((60, 45), 77, np.uint8)
    assert (plain.layer([flat], (12, 9), np.random.default_rng(0)) == 77).all()


def test_layers_add_up():
    flat = [np.full((60, 45), 50, np.uint8)]
    three = LayerRain(count=(3, 3), intensity=(1, 1))
    assert (three.layer(flat, (20, 20), np.random.default_rng(0)) == 150).all()
    many = LayerRain(count=(5, 5), intensity=(2, 2))
    assert (many.layer(flat, (20, 20), np.random.default_rng(0)) == 255).all()


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    seed=st.integers(0, 2**32),
    scratch=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_rain_is_reproducible_and_only_brightens(height, width, seed, scratch):
    clean = photo(height, width)
    maker = RainMaker(from_layers=LayerRain(count=(2, 5), angle=40), scratch=scratch)
    first, second = (maker(clean, layers(), np.random.default_rng(seed)) for _ in range(2))
    assert first.dtype == np.uint8
    assert first.shape == clean.shape
    assert (first == second).all()
    assert (first >= clean).all()


def test_another_seed_gives_other_rain():
    maker = RainMaker(scratch=1.0)
    a, b = (maker(photo(), [], np.random.default_rng(seed)) for seed in (1, 2))
    assert (a != b).any()


def test_a_streak_points_the_way_it_is_told():
    upright, slanted = streak(31, 1.0, 0), streak(31, 1.0, 45)
    assert upright.max() == pytest.approx(1)
    assert upright.sum(1).astype(bool).sum() > 25 > upright.shape[1]
    y, x = np.nonzero(slanted > 0.3)
    assert np.corrcoef(x, y)[0, 1] > 0.9


def test_longer_streaks_and_denser_rain_give_more_light():
    def light(**changes):
        rain = StreakRain(**{"depths": (1, 1), "density": (0.002, 0.002), "intensity": (100, 100), **changes})
        return np.mean([rain.layer((96, 96), np.random.default_rng(s)).mean() for s in range(12)])

    assert light(density=(0.01, 0.01)) > 2 * light()
    assert light(depths=(3, 3)) > 1.5 * light()


def test_veil_and_jpeg():
    clean = np.full((16, 16, 3), 100, np.uint8)
    assert (veil(clean, 0.5, 200) == 150).all()
    squeezed = jpeg(photo(), 60)
    assert squeezed.shape == photo().shape
    assert (squeezed != photo()).any()
    assert (jpeg(clean, 90) == 100).all()


def test_covering_drops_are_as_bright_as_they_are():
    clean = np.full((4, 6, 3), 100, np.uint8)
    layer = np.array([[0, 51, 102, 153, 204, 255]] * 4, np.uint8)
    # 100 (1 - a) + 200 a for a = 0, 0.2, .. 1
    assert (cover(clean, layer, 200)[..., 1] == [100, 120, 140, 160, 180, 200]).all()
    bright = np.full((4, 6, 3), 200, np.uint8)
    assert (cover(bright, layer, 200) == bright).all()


def test_sharpened_streaks_have_dark_edges_and_leave_the_rest_alone():
    clean = photo()
    rainy = clean.copy()
    rainy[:, 20] = np.minimum(rainy[:, 20].astype(int) + 80, 255)
    sharp = sharpen_rain(clean, rainy, 0.8)
    assert (sharpen_rain(clean, rainy, 0.0) == rainy).all()
    assert (sharp[:, 30:] == clean[:, 30:]).all()
    assert sharp[:, 20].mean() > rainy[:, 20].mean()
    assert sharp[:, [19, 21]].mean() < clean[:, [19, 21]].mean() - 5


def test_cover_and_sharpening_follow_the_seed():
    maker = RainMaker(scratch=1.0, cover=0.5, sharpening=0.8, jpeg=0.5)
    results = [[maker(photo(), [], np.random.default_rng(seed)) for seed in range(4)] for _ in range(2)]
    assert all((a == b).all() for a, b in zip(*results, strict=True))
    plain = RainMaker(scratch=1.0)
    assert any((a != plain(photo(), [], np.random.default_rng(s))).any() for s, a in enumerate(results[0]))


def test_both_sides_of_a_pair_can_come_from_the_same_camera():
    options = {"scratch": 1.0, "veil": 0.5, "jpeg": 1.0}
    apart, alike = RainMaker(**options), RainMaker(**options, same_camera=True)
    for seed in range(3):
        rainy, untouched = apart.pair(photo(), [], np.random.default_rng(seed))
        assert (untouched == photo()).all()
        same, clean = alike.pair(photo(), [], np.random.default_rng(seed))
        assert (same == rainy).all() and (apart(photo(), [], np.random.default_rng(seed)) == rainy).all()
        assert (clean != photo()).any()
        assert np.abs(clean.astype(int) - rainy).mean() < np.abs(photo().astype(int) - rainy).mean()


def test_without_rain_both_sides_from_the_same_camera_are_equal():
    still = RainMaker(LayerRain(intensity=(0, 0)), veil=0.5, jpeg=1.0, same_camera=True)
    rainy, clean = still.pair(photo(), [np.full((64, 64), 200, np.uint8)], np.random.default_rng(0))
    assert (rainy == clean).all() and (clean != photo()).any()


def test_grain_is_the_same_on_both_sides():
    clean = np.full((64, 64, 3), 120, np.uint8)
    camera = RainMaker(grain=6.0, dry=1.0, same_camera=True)
    strengths = []
    for seed in range(30):
        rainy, target = camera.pair(clean, [], np.random.default_rng(seed))
        assert (rainy == target).all()  # dry: no rain
        assert (target[..., 0] == target[..., 2]).all()  # grey
        strengths.append(float(target.std()))
    assert min(strengths) < 1.5
    assert 4.5 < max(strengths) < 6.2
    rainy, target = RainMaker(grain=6.0, same_camera=True, scratch=1.0).pair(
        clean, [], np.random.default_rng(0)
    )
    assert (rainy >= target).all()
    assert (rainy > target).any()
    other = RainMaker(grain=6.0, dry=1.0).pair(clean, [], np.random.default_rng(0))
    assert (other[1] == clean).all()
    assert (other[0] != clean).any()


def test_a_share_stays_dry():
    clean = photo()
    maker = RainMaker(scratch=1.0, dry=0.4)
    dry = [(maker(clean, [], np.random.default_rng(seed)) == clean).all() for seed in range(200)]
    assert 0.3 < np.mean(dry) < 0.5


def test_softer_grain_has_the_same_strength():
    sharp, soft = (grain((200, 200), 4.0, softness, np.random.default_rng(0)) for softness in (0.0, 1.0))
    assert sharp.std() == pytest.approx(4, rel=1e-3)
    assert soft.std() == pytest.approx(4, rel=1e-3)
    assert np.abs(np.diff(soft[..., 0])).mean() < 0.7 * np.abs(np.diff(sharp[..., 0])).mean()


def test_whole_crops_are_pixels_of_the_layer():
    source = layers()[0]
    sides = [np.lib.stride_tricks.sliding_window_view(one, (12, 9)) for one in (source, source[:, ::-1])]

    def exact(rain):
        made = [rain.layer([source], (12, 9), np.random.default_rng(seed)) for seed in range(30)]
        return sum(any((windows == one).all((2, 3)).any() for windows in sides) for one in made)

    assert exact(LayerRain(whole=1.0, intensity=(1, 1))) == 30
    assert 5 < exact(LayerRain(whole=0.5, intensity=(1, 1))) < 25
    assert exact(LayerRain(intensity=(1, 1))) == 0
    # A layer that is too small goes on as its mirror image.
    assert LayerRain(whole=1.0).layer(layers()[1:], (50, 90), np.random.default_rng(0)).shape == (50, 90)


def test_sharp_crops_keep_more_of_the_finest_detail():
    rng = np.random.default_rng(3)
    source = [np.repeat(rng.integers(0, 200, (1, 90), dtype=np.uint8), 90, 0)]

    def finest(**how):
        crops = [
            LayerRain(angle=8.0, intensity=(1, 1), **how).layer(source, (40, 40), np.random.default_rng(seed))
            for seed in range(40)
        ]
        return np.mean([np.square(np.diff(crop.astype(float), 2, axis=1)).mean() for crop in crops])

    exact = finest(whole=1.0)
    assert finest() < 0.5 * exact
    assert 0.55 * exact < finest(sharp=True) < exact


def screened(clean, layer):
    return np.rint(255 - (255 - clean.astype(float)) * (255 - layer[..., None].astype(float)) / 255).astype(
        np.uint8
    )


@pytest.fixture
def ground():
    """Two pictures of every brightness up to 180, so that no rain is brighter than white, and their rain."""
    ramp = np.linspace(0, 180, 256 * 256).reshape(256, 256)
    clean = np.rint(ramp)[..., None].repeat(3, axis=2).astype(np.uint8)
    drops = np.random.default_rng(3).random((256, 256)) < 0.2
    return clean, np.ascontiguousarray(clean.transpose(1, 0, 2)), (60 * drops).astype(np.uint8)


def test_added_rain_does_not_fade_and_screened_rain_does(ground):
    clean, _, layer = ground
    assert Effect.of(add_layer(clean, layer), clean).fading < 0.05
    assert Effect.of(screened(clean, layer), clean).fading > 0.9
    same = Effect.of(clean, clean)
    assert same.fading == 0 and not same.tone.any()
    # Of one brightness there is no line.
    flat = np.full((40, 40, 3), 90, np.uint8)
    assert Effect.of(flat + np.uint8(9), flat).fading == 0


def test_rain_is_put_on_another_picture_as_it_would_fall_there(ground):
    clean, other, layer = ground
    rainy = add_layer(clean, layer)
    assert np.array_equal(Effect.of(rainy, clean).onto(other, rainy, clean), add_layer(other, layer))
    rainy = screened(clean, layer)
    effect = Effect.of(rainy, clean)
    wrong = np.abs(effect.onto(other, rainy, clean).astype(int) - screened(other, layer))
    assert wrong.max() <= 12
    # To take it for added rain would be wrong by more.
    added = Effect(effect.tone, 0.0).onto(other, rainy, clean).astype(int)
    assert np.abs(added - screened(other, layer)).max() > 30
    # Where a pair is white no rain is seen, and none is made up.
    white = np.full_like(clean, 255)
    assert np.array_equal(Effect(0 * effect.tone, 1.0).onto(other, white, white), other)


def test_a_change_of_contrast_is_no_rain(ground):
    clean, other, layer = ground

    def contrast(picture):
        return np.clip(1.2 * picture.astype(float) + [-20, 0, 5], 0, 255).astype(np.uint8)

    rainy = add_layer(contrast(clean), layer)
    made = Effect.of(rainy, clean).onto(other, rainy, clean).astype(int)
    assert np.abs(made - add_layer(contrast(other), layer)).mean() < 2
