import numpy as np
import pytest

from toys_lab import ssim_in_double

pytest.importorskip("skimage")
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio

from unrain.lab.metrics import psnr_ssim


def pair(seed=0, shape=(40, 30, 3)):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 256, shape, dtype=np.uint8)
    return a, np.clip(a + rng.integers(-20, 21, shape), 0, 255).astype(np.uint8)


def test_luma_equals_scikit_images_rounded():
    a, _ = pair()
    assert np.array_equal(psnr_ssim.luma(a), rgb2ycbcr(a)[..., 0].round())


def test_psnr_equals_scikit_image_on_y():
    a, b = pair()
    expected = peak_signal_noise_ratio(*(rgb2ycbcr(x)[..., 0].round() for x in (a, b)), data_range=255)
    assert psnr_ssim.psnr(b, a) == pytest.approx(expected)


def test_psnr_by_hand():
    black, white = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)
    # Studio luma of black and white is 16 and 235.
    assert psnr_ssim.psnr(black, white) == pytest.approx(20 * np.log10(255 / 219))
    assert psnr_ssim.psnr(black, black) == float("inf")


def test_ssim_equals_its_definition():
    a, b = pair()
    expected = ssim_in_double(*(psnr_ssim.luma(x)[None, None] / 255 for x in (a, b)))
    # The definition there has its constants for a peak of 1.
    assert psnr_ssim.ssim(a, b) == pytest.approx(expected, abs=2e-4)


def test_ssim_of_equal_pictures_is_one():
    a, _ = pair()
    assert psnr_ssim.ssim(a, a) == pytest.approx(1)


def test_unequal_pictures_are_refused():
    a, b = pair()
    with pytest.raises(ValueError, match="differ in size"):
        psnr_ssim.psnr(a, b[1:])
    with pytest.raises(ValueError, match="8-bit"):
        psnr_ssim.ssim(a.astype(float), b.astype(float))
