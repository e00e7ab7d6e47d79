"""Rain at every size: shrinking, lifting, and the octave that is chosen."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import minimum_filter1d

from toys import natural
from unrain.derainer import MOST_LEVELS, Derainer
from unrain.errors import UsageError
from unrain.octaves import (
    BLOCK,
    Sample,
    Start,
    blocks,
    choose,
    coarsest,
    effect,
    lift,
    rms,
    shrink,
    windows,
)


class Opens:
    """An engine that takes away what is bright and up to four pixels wide, and leaves wider things alone."""

    multiple, halo, recursions, recursive, levels = 1, 8, 1, False, 1

    def step(self, rainy, estimate):
        eroded = minimum_filter1d(rainy, 5, axis=3, mode="nearest")
        opened = -minimum_filter1d(-eroded, 5, axis=3, mode="nearest")
        return np.minimum(rainy, opened).astype(np.float32)


class OpensFurther:
    """The same, from an estimate: it gives back what is faint there, and opens the rest."""

    multiple, halo, recursions, recursive, levels = 4, 8, 1, True, 2

    def step(self, rainy, estimate):
        return Opens().step(rainy - np.maximum(rainy - estimate - np.float32(0.02), 0), rainy)


def rained_on(width, height=1600, side=3200, value=60):
    """A smooth ramp, and stripes of a width on it."""
    clean = np.broadcast_to(np.linspace(40, 120, side)[None, :, None], (height, side, 3))
    stripes = (np.arange(side) // width % 40 == 0) * float(value)
    return (clean + stripes[None, :, None]).astype(np.uint8), clean


def even(image, multiple):
    """Repeat the last row and column until both sides are multiples."""
    short = [(0, -side % multiple) for side in image.shape[:2]]
    return np.pad(image, short + [(0, 0)] * (image.ndim - 2), mode="edge")


@pytest.mark.parametrize(
    ("size", "octave"),
    [((321, 481), 0), ((1100, 800), 0), ((1080, 1920), 1), ((3000, 4000), 2), ((8000, 8000), 3), ((1, 1), 0)],
)
def test_the_coarsest_octave_has_a_long_side_of_about_800(size, octave):
    assert coarsest(*size) == octave


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    octave=st.integers(0, 4),
    kind=st.sampled_from([np.uint8, np.uint16, np.float64]),
    grey=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_shrinking_keeps_a_flat_picture_and_rounds_sides_up(height, width, octave, kind, grey):
    scale = 1.0 if kind is np.float64 else float(np.iinfo(kind).max)
    flat = np.full((height, width) if grey else (height, width, 3), 0.4 * scale).astype(kind)
    small = shrink(flat, octave, scale)
    assert small.shape[:2] == (-(-height // 2**octave), -(-width // 2**octave))
    assert small.dtype == np.float32
    assert np.abs(small - flat.flat[0] / scale).max() < 1e-5


def test_shrinking_is_close_to_a_lanczos_filter_over_all_octaves():
    image = natural(256, 320)
    small = shrink(image, 2, 255)
    expected = np.asarray(Image.fromarray(image).resize((80, 64), Image.Resampling.LANCZOS)) / 255
    assert np.abs(small - expected).mean() < 0.01


@given(
    height=st.integers(1, 300),
    width=st.integers(1, 70),
    octave=st.integers(2, 6),
    kind=st.sampled_from([np.uint8, np.uint16, np.float32, np.float64]),
    grey=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_means_of_blocks_come_before_the_last_octave(height, width, octave, kind, grey):
    scale = 1.0 if kind in (np.float32, np.float64) else float(np.iinfo(kind).max)
    values = np.random.default_rng(height).random((height, width) if grey else (height, width, 3))
    image = (values * scale).astype(kind)
    block = 2 ** (octave - 1)
    filled = even(image / scale, block)
    rows, columns = (side // block for side in filled.shape[:2])
    values = even(filled.reshape(rows, block, columns, block, *filled.shape[2:]).mean(axis=(1, 3)), 2)
    size = (values.shape[1] // 2, values.shape[0] // 2)
    expected = [
        np.asarray(Image.fromarray(plane.astype(np.float32)).resize(size, Image.Resampling.LANCZOS))
        for plane in (values[None] if grey else values.transpose(2, 0, 1))
    ]
    planes = shrink(image, octave, scale)
    planes = planes[None] if grey else planes.transpose(2, 0, 1)
    assert np.abs(planes - np.clip(expected, 0, 1)).max() < 1e-5


@given(start=st.integers(0, 90), rows=st.integers(1, 40), width=st.integers(1, 130), octave=st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_rows_are_lifted_as_in_the_whole_picture(start, rows, width, octave):
    height = 131
    random = np.random.default_rng(0)
    shape = (-(-height // 2**octave), -(-width // 2**octave), 3)
    layer = random.random(shape, np.float32)
    whole = lift(layer, octave, slice(0, height), slice(0, width))
    columns = slice(width // 3, width)
    part = lift(layer, octave, slice(start, start + rows), columns)
    assert whole.shape == (height, width, 3)
    assert np.abs(part - whole[start : start + rows, columns]).max() < 1e-5


def test_a_smooth_layer_is_lifted_to_what_it_was_made_of():
    y, x = np.mgrid[:203, :301]
    layer = (0.5 + 0.2 * np.sin(x / 40) + 0.2 * np.cos(y / 30)).astype(np.float32)
    again = lift(shrink(layer, 2), 2, slice(0, 203), slice(0, 301))
    assert np.abs(again - layer)[8:-8, 8:-8].max() < 2e-3


@pytest.mark.parametrize(
    ("energies", "octave"), [([9, 8, 7], 0), ([7, 9, 8], 1), ([8.9, 9, 8.95], 2), ([0.001, 0.002, 0.001], 2)]
)
def test_the_coarsest_of_the_best_octaves_is_chosen(energies, octave):
    assert choose(energies) == octave


def test_windows_lie_where_most_was_found():
    layer = np.zeros((60, 80), np.float32)
    layer[10:14, 70:74] = 1
    assert len(windows(layer, 8)) == 4
    assert any(y <= 10 and y + 8 >= 14 and x <= 70 and x + 8 >= 74 for y, x in windows(layer, 8))
    assert windows(np.ones((1, 1), np.float32), 8)[0] == (0, 0)


@pytest.mark.parametrize(("width", "octave"), [(3, 0), (12, 2)])
def test_the_octave_in_which_rain_is_seen_is_found_and_the_rain_goes(width, octave):
    rainy, clean = rained_on(width)
    found = Derainer(Opens()).derain(rainy)
    assert found.octaves[0] == octave
    before, after = (np.abs(one - clean).mean() for one in (rainy, found.image))
    assert after < 0.5 * before


def test_a_layer_of_a_middle_octave_is_lifted(monkeypatch):
    monkeypatch.setattr("unrain.derainer.choose", lambda energies: 1)
    rainy, clean = rained_on(6)
    found = Derainer(Opens()).derain(rainy)
    assert found.octaves[0] == 1
    assert np.abs(found.image - clean).mean() < 0.6 * np.abs(rainy - clean).mean()


def test_a_clean_picture_is_left_alone_at_the_coarsest_octave():
    image = np.broadcast_to(np.linspace(40, 120, 2000)[None, :, None], (900, 2000, 3)).astype(np.uint8)
    found = Derainer(Opens()).derain(image)
    assert found.octaves == (1,)
    assert np.abs(found.image.astype(int) - image).max() <= 1


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_other_depths_and_grey_give_the_same(kind):
    rainy, _ = rained_on(10, 700, 2600)
    scale = 1 / 255 if kind is np.float32 else 257
    result = Derainer(Opens())(rainy)
    deep = Derainer(Opens())((rainy.astype(float) * scale).astype(kind))
    assert deep.dtype == kind
    assert np.abs(deep / scale - result).max() < 0.51
    grey = Derainer(Opens())((rainy[..., 0].astype(float) * scale).astype(kind))
    assert np.abs(grey / scale - result[..., 0]).max() < 0.51


def test_one_level_is_full_size_only_and_small_pictures_never_have_more():
    rainy, _ = rained_on(10, 300, 2600)
    assert Derainer(Opens(), levels=1).derain(rainy).octaves == (0,)
    assert Derainer(Opens()).derain(rainy[:, :900]).octaves == (0,)
    assert np.array_equal(Derainer(Opens(), levels=1)(rainy), Derainer(Opens(), levels=1, tile=200)(rainy))


@pytest.mark.parametrize("levels", [0, -1, MOST_LEVELS + 1])
def test_impossible_levels_are_refused(levels):
    with pytest.raises(UsageError, match=f"levels is {levels}"):
        Derainer(Opens(), levels=levels)


@given(height=st.integers(150, 420), width=st.integers(150, 420), levels=st.integers(2, 4))
@settings(max_examples=12, deadline=None)
def test_tiles_equal_the_whole_at_every_level(tiny_model, height, width, levels):
    image = natural(height, width)
    whole = Derainer(tiny_model, levels=levels).derain(image)
    tiled = Derainer(tiny_model, levels=levels, tile=80).derain(image)
    assert tiled.octaves == whole.octaves
    assert np.abs(tiled.image.astype(int) - whole.image).max() <= 1


def test_progress_rises_to_its_end():
    seen = []
    rainy, _ = rained_on(3, 700, 2600)
    Derainer(Opens(), tile=300).derain(rainy, progress=lambda done, total: seen.append(done / total))
    assert seen == sorted(seen)
    assert seen[-1] == 1


def test_a_plan_of_octaves_is_followed():
    rainy, _ = rained_on(12)
    derainer = Derainer(Opens())
    chosen = derainer.derain(rainy)
    again = derainer.derain(rainy, octaves=chosen.octaves)
    assert again.octaves == chosen.octaves
    assert np.array_equal(again.image, chosen.image)
    assert derainer.derain(rainy, octaves=(0,)).octaves == (0,)
    assert chosen.sizes == "at 1/4 of its size"
    assert derainer.derain(rainy, octaves=(0, 2)).sizes == "at full size and then 1/4 of its size"


def straightforward(image, levels):
    """Coarse to fine in a few lines: all of every octave, no tiles, no strips."""
    engine = OpensFurther()
    pyramid = [shrink(image, octave, 255) for octave in range(levels)]
    layer = None
    for picture in reversed(pyramid):
        height, width = picture.shape[:2]
        grow = ((0, -height % 4), (0, -width % 4), (0, 0))
        estimate = picture
        if layer is not None:
            size, box = (width, height), (0, 0, width / 2, height / 2)
            channels = [
                np.asarray(Image.fromarray(layer[..., c]).resize(size, Image.Resampling.BICUBIC, box=box))
                for c in range(3)
            ]
            estimate = np.clip(picture - np.stack(channels, 2), 0, 1)
        padded = (np.pad(one, grow, "reflect").transpose(2, 0, 1)[None] for one in (picture, estimate))
        derained = engine.step(*padded)[0].transpose(1, 2, 0)[:height, :width].clip(0, 1)
        layer = picture - derained
    return np.rint(255 * derained).astype(np.uint8)


@given(
    height=st.integers(40, 260),
    width=st.integers(40, 260),
    levels=st.integers(2, 4),
    tile=st.sampled_from([None, 80, 120]),
)
@settings(max_examples=25, deadline=None)
def test_octaves_equal_a_straightforward_implementation(height, width, levels, tile):
    image = natural(height, width)
    image[:, :: max(7, width // 9)] //= 2
    plan = tuple(reversed(range(levels)))
    found = Derainer(OpensFurther(), levels=levels, tile=tile).derain(image, octaves=plan)
    assert found.octaves == plan and found.shares == (1.0,) * levels
    assert np.abs(found.image.astype(int) - straightforward(image, levels)).max() <= 1


@pytest.mark.parametrize("tile", [None, 200, 600])
def test_finer_octaves_are_computed_where_they_pay(tile):
    """Wide rain everywhere is found in the small picture; narrow rain in a corner at full size."""
    _, clean = rained_on(1, 1024, 3072)
    soft = (
        60
        * np.clip(np.cos((np.arange(3072) % 160 - 80) / 16 * np.pi), 0, 1)
        * (np.abs(np.arange(3072) % 160 - 80) < 8)
    )
    rainy = (clean + soft[None, :, None]).astype(np.uint8)
    narrow = rainy.copy()
    narrow[:, :500] = np.maximum(narrow[:, :500], rained_on(3, 1024, 3072, 90)[0][:, :500])
    derainer = Derainer(OpensFurther(), tile=tile)
    assert derainer.derain(rainy).octaves == (2,)
    found = derainer.derain(narrow)
    assert found.octaves[0] == 2 and found.octaves[-1] == 0
    assert 0 < found.shares[-1] <= 0.5
    coarse = derainer.derain(narrow, octaves=(2,))
    stripes = np.flatnonzero(np.arange(400) // 3 % 40 == 0)
    assert (found.image[:, stripes] < coarse.image[:, stripes]).mean() > 0.9
    # Lifted twice or at once makes little difference.
    assert np.abs(found.image[:, 2100:].astype(int) - coarse.image[:, 2100:]).mean() < 0.5
    # The same blocks whatever the tiles.
    whole = Derainer(OpensFurther(), tile=4096).derain(narrow)
    assert whole.shares == found.shares
    assert np.abs(whole.image.astype(int) - found.image).max() <= 1


def test_a_block_is_computed_where_much_is_expected_and_ends_in_a_ramp():
    layer = np.zeros((512, 768), np.float32)
    layer[:256, :256] = 0.1
    start = blocks((1024, 1536), layer, 1, [Sample(0, 0, 0.05, 0.1), Sample(200, 500, 0.0, 0.0)])
    assert start.wanted.tolist() == [[True, False, False], [False, False, False]]
    rows, columns = np.arange(1024), np.arange(1536)
    share = start.share(rows, columns)
    assert share[: BLOCK - 96, : BLOCK - 96].min() == 1
    assert share[BLOCK + 32 :].max() == share[:, BLOCK + 32 :].max() == 0
    assert np.abs(np.diff(share, axis=0)).max() < 0.03
    part = start.share(rows[100:700], columns[450:900])
    assert np.abs(part - share[100:700, 450:900]).max() < 1e-6
    assert blocks((1024, 1536), layer, 1, [Sample(0, 0, 0.001, 0.1)]).wanted.sum() == 0
    # Where every sample says that the rain is finer, blocks with little of it are computed, too.
    finer, wider = Sample(0, 0, 0.03, 0.1), Sample(200, 500, 0.001, 0.02)
    assert blocks((1024, 1536), layer + 0.02, 1, [finer, wider]).wanted.sum() == 1
    assert blocks((1024, 1536), layer + 0.02, 1, [finer, replace(wider, change=0.006)]).wanted.all()
    # What the coarser octave cannot see may be everywhere.
    assert blocks((1024, 1536), 0 * layer, 1, [Sample(0, 0, 0.05, 0.0)]).wanted.all()
    assert blocks((1024, 1536), 0 * layer, 1, [Sample(0, 0, 0.05, 0.0)]).share(rows, columns) is None


def test_the_estimate_that_an_octave_starts_from_is_the_picture_without_the_lifted_layer():
    layer = np.full((50, 60), 0.2, np.float32)
    rainy = np.full((3, 10, 12), 0.5, np.float32)
    start = Start(layer, 2, top=8, left=16)
    np.testing.assert_allclose(start.estimate(rainy, np.arange(10), np.arange(12)), 0.3, atol=1e-6)


@pytest.mark.parametrize(("width", "octaves"), [(1300, (1, 0)), (1301, (1,)), (2600, (2, 1)), (2602, (2,))])
def test_a_finer_octave_that_costs_little_is_always_computed(width, octaves):
    flat = np.full((40, width, 3), 90, np.uint8)
    found = Derainer(OpensFurther()).derain(flat)
    assert found.octaves == octaves and set(found.shares) == {1.0}


def test_what_an_octave_gives_back_of_wider_rain_is_no_reason_to_compute_it():
    before = (natural(96, 128) / 255 * 0.5).astype(np.float32)
    wide, narrow = np.zeros((2, *before.shape), np.float32)
    wide[:, 40:72] = 0.2
    narrow[:, ::16] = 0.1
    assert effect(before, before + wide, 1) < 0.1 * rms(wide)
    assert effect(before, before - narrow, 1) == pytest.approx(rms(narrow), rel=0.01)
    # Both at once: the narrow rain still counts.
    assert effect(before, before + wide - narrow, 1) > 0.8 * rms(narrow)
