"""The change of Cb and Cr against scikit-image's rgb2ycbcr."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("skimage")
from skimage.color import rgb2ycbcr

from unrain.lab.data.pairs import Pair
from unrain.lab.metrics.chroma import chroma_change
from unrain.lab.metrics.measures import open_measures


def referee(one, other):
    return np.abs(rgb2ycbcr(one)[..., 1:] - rgb2ycbcr(other)[..., 1:]).mean()


def pictures(height=300, width=40):
    random = np.random.default_rng(0)
    return random.integers(0, 256, (2, height, width, 3), np.uint8)


# Fewer rows than are taken at once, just as many, and a few more.
@pytest.mark.parametrize("height", [1, 256, 300])
def test_it_is_that_of_scikit_image(height):
    one, other = pictures(height)
    assert chroma_change(one, other) == pytest.approx(referee(one, other), rel=1e-5)
    assert chroma_change(one, one) == 0


def test_light_without_colour_does_not_count():
    clean = pictures()[0] // 2
    assert chroma_change(clean + np.uint8(90), clean) == pytest.approx(0, abs=1e-4)
    assert chroma_change(clean + np.array([90, 0, 0], np.uint8), clean) > 10


def test_what_cannot_be_compared_is_refused():
    one, other = pictures()
    with pytest.raises(ValueError, match="differ in size"):
        chroma_change(one, other[1:])
    with pytest.raises(ValueError, match="8-bit"):
        chroma_change(one, other.astype(np.float32))


def test_pairs_are_held_against_the_ground_truth_and_the_rest_against_the_input():
    rainy, clean = pictures()
    result = np.random.default_rng(1).integers(0, 256, clean.shape, np.uint8)
    for kind, pair, reference in (
        ("pairs", Pair("a", rainy, clean), clean),
        ("clean", Pair("a", clean, clean), clean),
        ("real", Pair("a", rainy, rainy), rainy),
    ):
        measures, _ = open_measures(["chroma"], kind)
        row = measures(pair, result)
        assert row["chroma"] == pytest.approx(referee(result, reference), rel=1e-5)
        assert measures.average([row, row])["chroma"] == pytest.approx(row["chroma"])
        assert "chroma" not in open_measures(["rgb"], kind)[0](pair, result)
