"""The rain layer: more or less of it taken away, exactly, and whether it is hardly anything."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unrain import layer
from unrain.derainer import Derained
from unrain.errors import UsageError

KINDS = [np.uint8, np.uint16, ">u2", np.float16, np.float32, np.float64]
SHAPES = [(1, 1, 3), (40, 31, 3), (300, 500), (9, 1)]


def pair(kind, shape=(40, 31, 3), seed=0):
    """A picture and another, every value of both drawn alone."""
    random = np.random.default_rng(seed)
    if np.dtype(kind).kind == "f":
        return tuple(random.random(shape).astype(kind) for _ in range(2))
    return tuple(random.integers(0, np.iinfo(kind).max + 1, shape).astype(kind) for _ in range(2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_none_and_all_are_the_input_and_the_result_bit_for_bit(kind, shape):
    rainy, derained = pair(kind, shape)
    found = Derained(image=derained, rainy=rainy, recursions=1)
    for strength, expected in ((0, rainy), (1, derained)):
        result = found.at(strength)
        assert result.dtype == rainy.dtype
        assert result.tobytes() == expected.tobytes()
    assert found.at(0) is not rainy


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("strength", [0.1, 0.5, 0.999, 1.25, 1.5])
def test_a_share_is_clipped_and_rounded_once(kind, shape, strength):
    rainy, derained = pair(kind, shape)
    before = rainy.copy()
    result = Derained(derained, rainy, 1).at(strength)
    most = 1 if result.dtype.kind == "f" else np.iinfo(result.dtype).max
    exact = np.clip(rainy - strength * (rainy.astype(np.float64) - derained), 0, most)
    assert result.dtype == rainy.dtype and result.shape == shape
    if result.dtype.kind == "u":
        assert np.abs(result - exact).max() <= 0.5 + 1e-4
    else:
        np.testing.assert_array_equal(result, exact.astype(kind))
    np.testing.assert_array_equal(rainy, before)


@given(
    kind=st.sampled_from([np.uint8, np.uint16, np.float64]),
    grey=st.booleans(),
    low=st.floats(0, 1.5),
    high=st.floats(0, 1.5),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_more_strength_never_goes_back(kind, grey, low, high, seed):
    low, high = sorted((low, high))
    rainy, derained = pair(kind, (12, 9) if grey else (12, 9, 3), seed)
    weak, strong = (layer.at_strength(rainy, derained, strength).astype(float) for strength in (low, high))
    towards = np.sign(derained.astype(float) - rainy)
    assert ((strong - weak) * towards >= -1e-15).all()
    assert ((weak - rainy) * towards >= -1e-15).all()


@pytest.mark.parametrize("strength", [-0.01, 1.51, float("nan"), float("inf")])
def test_a_strength_out_of_range_is_refused(strength):
    rainy, derained = pair(np.uint8)
    with pytest.raises(UsageError, match=r"^strength is .*: give 0 to 1.5$"):
        Derained(derained, rainy, 1).at(strength)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_large_picture_takes_no_more_memory_than_its_result(kind):
    rainy, derained = pair(kind, (2000, 3000, 3))
    found = Derained(derained, rainy, 1)
    tracemalloc.start()
    try:
        found.at(0.7)
        _, most = tracemalloc.get_traced_memory()
        assert most < rainy.nbytes + 8e6
        tracemalloc.reset_peak()
        assert not found.hardly_any_rain
        _, most = tracemalloc.get_traced_memory()
        assert most < 8e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize(("levels", "hardly"), [(0, True), (0.29, True), (0.31, False)])
def test_hardly_any_rain_is_a_mean_change_of_less_than_three_tenths_of_a_level(kind, levels, hardly):
    most = 1 if np.dtype(kind).kind == "f" else np.iinfo(kind).max
    rainy = np.full((100, 100, 3), 0.5 * most).astype(kind)
    derained = rainy.copy()
    # A hundredth of the values are changed, half of them upwards.
    step = 100 * levels * most / 255
    derained[0, ::2] = (rainy[0, ::2] - step).astype(kind)
    derained[0, 1::2] = (rainy[0, 1::2] + step).astype(kind)
    assert Derained(derained, rainy, 1).hardly_any_rain == hardly


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_difference_gives_the_result_back(kind):
    rainy, derained = pair(kind)
    difference = layer.difference(rainy, derained)
    assert difference.dtype == rainy.dtype
    np.testing.assert_array_equal(rainy - difference, derained)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_luma_is_that_of_bt601(kind):
    picture = pair(kind, (301, 203, 3))[0]
    expected = picture.astype(np.float64) @ [0.299, 0.587, 0.114] * 0.25
    found = layer.luma(picture, 0.25)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
