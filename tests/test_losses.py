import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

torch = pytest.importorskip("torch")
from unrain.lab import losses  # noqa: E402


def pair(seed=0, shape=(2, 3, 24, 20)):
    rng = np.random.default_rng(seed)
    a = rng.random(shape)
    return a, np.clip(a + rng.normal(0, 0.1, shape), 0, 1)


def ssim_in_double(a, b):
    """SSIM from its definition, with SciPy's Gaussian filter, in double precision."""

    def blur(x):
        return gaussian_filter(x, sigma=(0, 0, 1.5, 1.5), truncate=5 / 1.5)[..., 5:-5, 5:-5]

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    cov = blur(a * b) - mean_a * mean_b
    top = (2 * mean_a * mean_b + 1e-4) * (2 * cov + 9e-4)
    return (top / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))).mean()


def test_ssim_equals_its_definition_in_double_precision():
    a, b = pair()
    ours = losses.ssim(torch.from_numpy(a).float(), torch.from_numpy(b).float())
    assert float(ours) == pytest.approx(ssim_in_double(a, b), abs=1e-5)


def test_ssim_of_equal_pictures_is_one_and_its_gradient_points_to_the_clean_picture():
    a, b = (torch.from_numpy(x).float() for x in pair())
    assert float(losses.ssim(a, a)) == pytest.approx(1)
    b.requires_grad_()
    losses.ssim(b, a).backward()
    step = b.detach() + 10 * b.grad
    assert losses.ssim(step, a) > losses.ssim(b.detach(), a)


def test_ssim_is_computed_in_float32_under_autocast():
    a, b = (torch.from_numpy(x).float() for x in pair())
    with torch.autocast("cpu", torch.bfloat16):
        inside = losses.ssim(a, b)
    assert inside.dtype == torch.float32
    assert float(inside) == pytest.approx(float(losses.ssim(a, b)), abs=1e-6)


def test_charbonnier_equals_its_definition_in_double_precision():
    a, b = pair(1)
    ours = losses.charbonnier(torch.from_numpy(a).float(), torch.from_numpy(b).float())
    assert float(ours) == pytest.approx(np.sqrt((a - b) ** 2 + 1e-6).mean(), rel=1e-5)


def test_losses_agree_with_finite_differences():
    a, b = (torch.from_numpy(x) for x in pair(2, (1, 1, 12, 12)))
    b.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: losses.charbonnier(x.double(), a).double(), b, atol=1e-3, eps=1e-3
    )
