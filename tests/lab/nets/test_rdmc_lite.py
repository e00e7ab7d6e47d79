import numpy as np
import pytest

torch = pytest.importorskip("torch")
from skimage.color import rgb2ycbcr  # noqa: E402

from unrain.lab.nets import build  # noqa: E402
from unrain.lab.nets.rdmc_lite import garrote, limit_chroma  # noqa: E402


def small(**changes):
    torch.manual_seed(0)
    return build("rdmc_lite", **{"width": 24, "encoder": (1, 1, 1), "decoder": (1, 1), **changes}).eval()


def test_an_untrained_network_leaves_the_picture_alone():
    rainy = torch.rand(2, 3, 19, 33)
    with torch.inference_mode():
        estimates = small()(rainy, 3)
    assert len(estimates) == 3
    assert all(torch.equal(estimate, rainy) for estimate in estimates)


def stirred(**changes):
    net = small(**changes)
    for parameter in net.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return net


def test_every_parameter_learns():
    net = stirred()
    net(torch.rand(1, 3, 16, 24))[-1].square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_every_recursion_is_one_step():
    net, rainy = stirred(), torch.rand(1, 3, 16, 24)
    with torch.inference_mode():
        first, second = net(rainy, 2)
        assert torch.allclose(first, net.step(rainy, rainy))
        assert torch.allclose(second, net.step(rainy, first), atol=1e-6)
    assert not torch.allclose(first, second)


def test_a_far_change_does_not_reach_a_pixel():
    """No global pooling anywhere: tiles can be exact."""
    net, rainy = stirred(), torch.rand(1, 3, 32, 384)
    changed = rainy.clone()
    changed[..., -64:] = 0
    with torch.inference_mode():
        assert torch.equal(net(rainy, 1)[0][..., :64], net(changed, 1)[0][..., :64])


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="3 encoder levels need 2 decoder levels"):
        small(decoder=(1,))
    with pytest.raises(ValueError, match="does not divide"):
        small(width=32)


def test_the_form_for_export_is_the_same_network(monkeypatch):
    net, rainy = stirred(), torch.rand(2, 3, 24, 32)
    with torch.inference_mode():
        expected = net(rainy, 2)[-1]
        norms = []
        hook = torch.nn.modules.module.register_module_forward_hook(
            lambda module, *_: norms.append(module) if isinstance(module, torch.nn.LayerNorm) else None
        )
        monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
        torch.testing.assert_close(net(rainy, 2)[-1], expected, atol=1e-5, rtol=0)
        hook.remove()
    assert not norms


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_a_limited_layer_keeps_its_luma_and_a_share_of_its_colour(share):
    torch.manual_seed(0)
    rainy, change = 0.9 * torch.rand(1, 3, 8, 9), 0.2 * torch.randn(1, 3, 8, 9)
    rainy[..., 0] = 1.0
    limited = limit_chroma(change, rainy, share)

    def ycbcr(layer):
        """What a layer adds to Y, Cb and Cr: differences from black."""
        return rgb2ycbcr(layer[0].permute(1, 2, 0).numpy()) - rgb2ycbcr(np.zeros((1, 1, 3)))

    before, after = ycbcr(change), ycbcr(limited)
    np.testing.assert_allclose(after[..., 0], before[..., 0], atol=0.02)
    np.testing.assert_allclose(after[:, 1:, 1:], share * before[:, 1:, 1:], atol=0.02)
    torch.testing.assert_close(limited[..., 0], change[..., 0])


def test_the_limit_is_part_of_the_network():
    net, rainy = stirred(), torch.rand(1, 3, 16, 24)
    limited = stirred(chroma=0.3)
    with torch.inference_mode():
        expected = rainy + limit_chroma(net.step(rainy, rainy) - rainy, rainy, 0.3)
        torch.testing.assert_close(limited.step(rainy, rainy), expected)


def test_the_garrote_leaves_small_changes_out_and_large_ones_alone():
    change = torch.tensor([0.0, 0.9, -1.0, 2.0, -10.0, 100.0])[None, None, None].repeat(1, 3, 1, 1)
    shrunk = garrote(change, 1.0)[0, 0, 0]
    assert torch.allclose(shrunk, torch.tensor([0.0, 0.0, 0.0, 1.5, -9.9, 99.99]))
    # The three channels shrink alike, so that colour stays.
    coloured = torch.tensor([0.1, -0.2, 2.0])[None, :, None, None]
    assert torch.allclose(garrote(coloured, 1.0), coloured * 0.75)


def test_the_garrote_has_right_gradients():
    change = torch.tensor([0.3, -1.5, 2.0, -4.0], dtype=torch.float64)[None, None, None].repeat(1, 3, 1, 1)
    change += torch.tensor([0.0, 0.01, 0.03])[None, :, None, None]
    assert torch.autograd.gradcheck(lambda values: garrote(values, 1.0), change.requires_grad_())


def test_a_network_with_a_threshold_changes_nothing_by_less():
    net, rainy = stirred(), torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        free = net.step(rainy, rainy) - rainy
        threshold = 255 * float(free.abs().amax(1).median())
        bound = stirred(threshold=threshold).step(rainy, rainy) - rainy
        small = (255 * free.abs().amax(1, keepdim=True) < 0.999 * threshold).expand_as(free)
        assert 0.3 < small.float().mean() < 0.7
        assert bound[small].abs().max() < 1e-6
        torch.testing.assert_close(bound, garrote(free, threshold / 255), atol=1e-6, rtol=0)
