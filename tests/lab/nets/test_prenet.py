"""PReNet: its size, its recursions, and its authors' weights on two pictures."""

import numpy as np
import pytest

from toys import SHARED

pytest.importorskip("torch")
pytest.importorskip("skimage")
import torch

from unrain.derainer import Derainer
from unrain.devices import Processor
from unrain.lab.bench.candidates import find_peer, open_derainer
from unrain.lab.data.pairs import pairs
from unrain.lab.metrics import psnr_ssim
from unrain.lab.nets import build
from unrain.lab.torch_engine import TorchEngine


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return build("prenet").eval().requires_grad_(False)


def test_it_has_the_published_size(net):
    assert sum(parameter.numel() for parameter in net.parameters()) == 168_963


def test_every_estimate_is_given_and_later_recursions_do_not_change_earlier_ones(net):
    rainy = torch.rand(2, 3, 13, 17)
    estimates = net(rainy)
    assert len(estimates) == 6
    assert all(estimate.shape == rainy.shape for estimate in estimates)
    torch.testing.assert_close(net(rainy, 2)[1], estimates[1])
    torch.testing.assert_close(net(rainy[1:])[-1], estimates[-1][1:], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="at least 1"):
        net(rainy, 0)


def test_the_hidden_state_is_carried():
    """Were it not, a second recursion over the same estimate would give the same again."""
    net = build("prenet").eval().requires_grad_(False)
    for gate in (net.conv_i, net.conv_f, net.conv_o, net.conv_g):
        gate[0].weight[:, 32:] = 0  # blind to the hidden features: only the cell is left
    net.conv0[0].weight[:, 3:] = 0  # blind to the estimate
    first, second = net(torch.rand(1, 3, 12, 12), 2)
    assert (first - second).abs().max() > 1e-4


def test_it_runs_whole_behind_the_engines_interface(net):
    engine = TorchEngine(net, processor=Processor("cpu", threads=1))
    assert (engine.recursive, engine.recursions, engine.recursions_per_step, engine.multiple) == (
        False,
        1,
        6,
        1,
    )
    image = np.random.default_rng(0).random((21, 34, 3), np.float32)
    expected = net(torch.from_numpy(image.transpose(2, 0, 1)[None]))[-1][0].clamp(0, 1)
    np.testing.assert_allclose(Derainer(engine)(image), expected.numpy().transpose(1, 2, 0), atol=1e-6)
    rainy = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(net.step(rainy, torch.rand(1, 3, 8, 8)), net(rainy, 6)[-1])


@pytest.mark.skipif(not (SHARED / "peers").is_dir(), reason="needs ../shared/peers and ../shared/data")
@pytest.mark.parametrize(
    "which, expected",
    [("l", [(34.601, 0.9569), (36.958, 0.9646)]), ("h", [(29.392, 0.8997), (29.723, 0.8202)])],
)
def test_the_authors_weights_do_on_two_crops_what_they_did(which, expected):
    """Two crops only, against stored figures; the whole sets are in docs/benchmark.md."""
    peer = find_peer(f"prenet:{SHARED}/peers/prenet_rain100{which}.safetensors")
    derainer, recursions = open_derainer(peer.source, None, processor=Processor("cpu", threads=1))
    assert recursions == 6
    for pair, (psnr, ssim) in zip(pairs(SHARED / "data", f"rain100{which}/test")[:2], expected, strict=True):
        rainy, clean = pair.rainy[100:196, 100:196], pair.clean[100:196, 100:196]
        restored = derainer(rainy)
        assert psnr_ssim.psnr(restored, clean) == pytest.approx(psnr, abs=0.01)
        assert psnr_ssim.ssim(restored, clean) == pytest.approx(ssim, abs=0.001)
