import numpy as np
import pytest
from scipy.fft import fft2
from scipy.ndimage import gaussian_filter, minimum_filter
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio

from toys_lab import ssim_in_double

torch = pytest.importorskip("torch")
from unrain.lab.nets.vgg import VGG19  # noqa: E402
from unrain.lab.training import losses  # noqa: E402


def pair(seed=0, shape=(2, 3, 24, 20)):
    rng = np.random.default_rng(seed)
    a = rng.random(shape)
    return a, np.clip(a + rng.normal(0, 0.1, shape), 0, 1)


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


def test_luma_psnr_is_scikit_images_on_y_in_double_precision():
    a, b = pair(4)
    y = [rgb2ycbcr(side.transpose(0, 2, 3, 1))[..., 0] / 255 for side in (a, b)]
    expected = np.mean([peak_signal_noise_ratio(p, q, data_range=1) for p, q in zip(*y, strict=True)])
    ours = losses.luma_psnr(torch.from_numpy(b).float(), torch.from_numpy(a).float())
    # 1e-6 on an error of some 0.003.
    assert float(ours) == pytest.approx(expected, abs=0.005)


def test_luma_psnr_of_a_perfect_picture_is_finite_and_so_is_its_gradient():
    clean = torch.from_numpy(pair()[0]).float()
    restored = clean.clone().requires_grad_()
    losses.luma_psnr(restored, clean).backward()
    assert float(losses.luma_psnr(clean, clean)) == pytest.approx(60)
    assert torch.isfinite(restored.grad).all()


def test_fourier_is_scipys_transform_in_double_precision():
    a, b = pair(7)
    spectrum = fft2(a - b, norm="ortho")
    expected = (np.abs(spectrum.real).mean() + np.abs(spectrum.imag).mean()) / 2
    ours, other = (torch.from_numpy(x).float() for x in (a, b))
    assert float(losses.fourier(ours, other)) == pytest.approx(expected, rel=1e-5)
    leaf = torch.from_numpy(a[:1, :1]).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: losses.fourier(x, other[:1, :1]).double(), leaf, atol=1e-3, eps=1e-3
    )


def test_total_variation_equals_its_definition_in_double_precision():
    a, _ = pair(4)
    expected = np.abs(np.diff(a, axis=2)).mean() + np.abs(np.diff(a, axis=3)).mean()
    assert float(losses.total_variation(torch.from_numpy(a).float())) == pytest.approx(expected, rel=1e-5)


def test_low_pass_is_scipys_gaussian_of_what_is_there_in_double_precision():
    a, b = pair(5, (2, 3, 40, 29))

    def smooth(x):
        options = {"sigma": (0, 0, 8, 8), "mode": "constant", "truncate": 8}
        return gaussian_filter(x, **options) / gaussian_filter(np.ones_like(x), **options)

    ours, other = (torch.from_numpy(x).float() for x in (a, b))
    np.testing.assert_allclose(losses.low_pass(ours).numpy(), smooth(a), rtol=1e-5)
    difference = losses.low_pass_identity(ours, other)
    assert float(difference) == pytest.approx(np.abs(smooth(a) - smooth(b)).mean(), rel=1e-4)


def test_low_pass_identity_hardly_feels_streaks_that_go_and_feels_light_that_moves():
    rainy = torch.zeros(1, 3, 64, 64)
    rainy[..., ::16] = 0.5
    streaks_gone = losses.low_pass_identity(torch.zeros_like(rainy), rainy)
    with torch.autocast("cpu", torch.bfloat16):
        darker = losses.low_pass_identity(rainy - 0.1, rainy)
    assert float(darker) == pytest.approx(0.1, rel=1e-4)
    assert streaks_gone < 0.5 * float(darker)


def test_dark_channel_is_scipys_minimum_filter():
    a, _ = pair(6)
    expected = minimum_filter(a.min(1), size=(1, 15, 15), mode="constant", cval=np.inf).mean()
    assert float(losses.dark_channel(torch.from_numpy(a).float())) == pytest.approx(expected, rel=1e-5)


def test_losses_agree_with_finite_differences():
    a, b = (torch.from_numpy(x) for x in pair(2, (1, 1, 12, 12)))
    b.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: losses.charbonnier(x.double(), a).double(), b, atol=1e-3, eps=1e-3
    )


def layers(seed):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(2, 3, n, n)) for n in (9, 5, 3)]


def in_torch(arrays):
    return [torch.from_numpy(x).float() for x in arrays]


@pytest.mark.parametrize("per_layer", [False, True])
def test_contrastive_equals_its_definition_in_double_precision(per_layer):
    x, b, o = layers(0), layers(1), layers(2)
    w = (0.25, 0.5, 1.0)
    near = [np.abs(p - q).mean() for p, q in zip(x, b, strict=True)]
    far = [np.abs(p - q).mean() for p, q in zip(x, o, strict=True)]
    if per_layer:
        expected = sum(k * n / (f + 1e-7) for k, n, f in zip(w, near, far, strict=True))
    else:
        expected = np.dot(w, near) / (np.dot(w, far) + 1e-7)
    ours = losses.contrastive(in_torch(x), in_torch(b), in_torch(o), w, per_layer=per_layer)
    assert float(ours) == pytest.approx(expected, rel=1e-5)
    at_clean = losses.contrastive(in_torch(b), in_torch(b), in_torch(o), w, per_layer=per_layer)
    assert float(at_clean) == 0
    at_rainy = losses.contrastive(in_torch(o), in_torch(b), in_torch(o), w, per_layer=per_layer)
    assert float(at_rainy) > 1e6


@pytest.mark.parametrize("per_layer", [False, True])
def test_contrastive_gradient_equals_its_formula_and_reaches_the_anchor_only(per_layer):
    arrays = layers(0), layers(1), layers(2)
    w = (0.25, 0.5, 1.0)
    x, b, o = ([t.requires_grad_() for t in in_torch(a)] for a in arrays)
    losses.contrastive(x, b, o, w, per_layer=per_layer).backward()
    near = [k * np.abs(p - q).mean() for k, p, q in zip(w, arrays[0], arrays[1], strict=True)]
    far = [k * np.abs(p - q).mean() for k, p, q in zip(w, arrays[0], arrays[2], strict=True)]
    for i, k in enumerate(w):
        top, below = (near[i], far[i]) if per_layer else (sum(near), sum(far))
        scale = k if per_layer else 1
        to_clean, to_rainy = (np.sign(arrays[0][i] - other[i]) * k / x[i].numel() for other in arrays[1:])
        expected = scale * (to_clean / below - to_rainy * top / below**2)
        assert np.allclose(x[i].grad, expected, rtol=1e-4, atol=1e-9)
    assert all(t.grad is None for t in (*b, *o))


@pytest.fixture(scope="module")
def vgg():
    """A narrow VGG-19 with random weights; the prior's mechanics do not depend on what it has learnt."""
    torch.manual_seed(0)
    net = VGG19((4,) * 16)
    for conv in net.convs.values():
        torch.nn.init.kaiming_normal_(conv.weight)
    return net


def triple():
    return tuple(torch.from_numpy(x).float() for x in (pair()[1], *pair(1)))


@pytest.mark.parametrize("choice", losses.CONTRAST_LAYERS)
def test_the_prior_is_live_through_the_restored_picture_only(vgg, choice):
    x, b, o = (t.requires_grad_() for t in triple())
    prior = losses.ContrastivePrior(vgg, choice)
    loss = prior.between(b, o)(x)
    names = losses.CONTRAST_LAYERS[choice]
    features = [vgg(t, names) for t in (x, b, o)]
    expected = losses.contrastive(*features, list(names.values()))
    assert torch.allclose(loss, expected, rtol=1e-5)
    loss.backward()
    assert float(x.grad.abs().sum()) > 0
    assert b.grad is None
    assert o.grad is None
    assert all(parameter.grad is None for parameter in vgg.parameters())
    closer = x.detach() - 1e-3 * x.grad / x.grad.abs().max()
    assert float(prior.between(b, o)(closer)) < float(loss)


def test_the_inert_prior_has_the_same_value_and_no_gradient(vgg):
    x, b, o = triple()
    x.requires_grad_()
    live, inert = (losses.ContrastivePrior(vgg, inert=i).between(b, o)(x) for i in (False, True))
    assert float(live) == float(inert)
    (inert + 0 * x.sum()).backward()
    assert not x.grad.any()


def test_the_prior_computes_features_in_bf16_and_distances_in_float32(vgg):
    x, b, o = triple()
    prior = losses.ContrastivePrior(vgg)
    with torch.autocast("cpu", torch.bfloat16):
        assert vgg(x, ("relu1_1",))[0].dtype == torch.bfloat16
        inside = prior.between(b, o)(x.requires_grad_())
    assert inside.dtype == torch.float32
    assert float(inside) == pytest.approx(float(prior.between(b, o)(x)), rel=0.02)
    inside.backward()
    assert x.grad.isfinite().all()
    assert x.grad.any()


def test_the_weights_double_from_layer_to_layer_as_published():
    for choice in ("paper", "released"):
        assert list(losses.CONTRAST_LAYERS[choice].values()) == [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1]


def test_some_patches_of_a_batch_can_stand_for_all(vgg):
    x, b, o = triple()
    one = losses.ContrastivePrior(vgg, patches=1).between(b, o)(x)
    alone = losses.ContrastivePrior(vgg).between(b[:1], o[:1])(x[:1])
    assert float(one) == pytest.approx(float(alone), rel=1e-6)
