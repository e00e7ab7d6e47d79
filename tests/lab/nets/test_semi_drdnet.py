"""Semi-DRDNet: its size to the weight and its cost, its four pictures, and pooling that tiles do not see."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from toys import natural
from unrain.derainer import Derainer
from unrain.lab import export
from unrain.lab.nets import NETS, build
from unrain.lab.nets.semi_drdnet import SemiDRDNet, SqueezeExcitation, window_means

SMALL = {"width": 8, "rain_blocks": 2, "detail_blocks": 1, "window": 16}
# Convolutions at the ends 3, in each block 2, half a window and the cell at its end.
REACH = 3 + 2 * (2 + 8 + 4)


def stirred(**changes) -> SemiDRDNet:
    """A small network whose every weight and BatchNorm statistic differs from its start."""
    torch.manual_seed(0)
    net = SemiDRDNet(**{**SMALL, **changes})
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net.eval()


def weights(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_papers_size():
    with torch.device("meta"):
        network = SemiDRDNet()
    assert (weights(network.rain), weights(network.detail)) == (1_235_651, 3_986_115)
    assert weights(network) == 5_221_766
    with torch.device("meta"):
        assert weights(SemiDRDNet(detail_blocks=0)) == 1_235_651
        assert weights(SemiDRDNet(detail_input="sum")) == 5_221_766
        assert weights(SemiDRDNet(detail_input="both")) == 5_221_766 + 3 * 9 * 64


def billions(network: SemiDRDNet) -> float:
    """Multiplications of the convolutions at 256 x 256, counted at 16 x 16: all grow with the pixels."""
    picture = torch.empty(1, 3, 16, 16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.step(picture, picture)
    return counter.get_flop_counts()["Global"][torch.ops.aten.convolution] * 256 / 2e9


def test_the_papers_cost_and_what_folding_saves():
    network = SemiDRDNet().eval()
    assert billions(network) == pytest.approx(80.0 + 260.3, abs=0.1)
    network.coarse_only = True
    assert billions(network) == pytest.approx(80.0, abs=0.1)
    assert billions(SemiDRDNet(fold=2).eval()) < 340.3 / 3.9


@pytest.mark.parametrize("detail_input", ["rainy", "sum", "both"])
@pytest.mark.parametrize("fold", [1, 2, 4])
def test_the_four_pictures_add_up(detail_input, fold):
    network, rainy = stirred(detail_input=detail_input, fold=fold), torch.rand(2, 3, 21, 34)
    with torch.no_grad():
        parts = network.separate(rainy)
        coarse, final = network(rainy)
    assert {part.shape for part in parts} == {rainy.shape}
    torch.testing.assert_close(parts.coarse, rainy - parts.rain)
    torch.testing.assert_close(parts.final, parts.coarse + parts.detail)
    assert torch.equal(coarse, parts.coarse) and torch.equal(final, parts.final)
    assert parts.rain.any() and parts.detail.any()


@pytest.mark.parametrize("detail_input, depends", [("rainy", False), ("sum", True), ("both", True)])
def test_the_detail_depends_on_the_coarse_picture_where_it_is_shown(detail_input, depends):
    network, rainy = stirred(detail_input=detail_input), torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        before = network.separate(rainy).detail
        network.rain.exit.bias += 0.2
        assert torch.equal(network.separate(rainy).detail, before) != depends


def test_the_detail_branch_can_be_left_off_at_run_time():
    network, rainy = stirred(), torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        coarse, final = network(rainy)
        assert torch.equal(network.step(rainy, rainy), final)
        network.coarse_only = True
        assert [torch.equal(estimate, coarse) for estimate in network(rainy)] == [True]
        assert torch.equal(network.step(rainy, rainy), coarse)
        parts = network.separate(rainy)
        assert parts.detail is None and torch.equal(parts.final, coarse)
        assert len(stirred(detail_blocks=0)(rainy)) == 1


def test_an_untrained_network_leaves_the_picture_alone():
    rainy = torch.rand(1, 3, 17, 20)
    with torch.no_grad():
        assert all(torch.equal(estimate, rainy) for estimate in SemiDRDNet(**SMALL).eval()(rainy))


def test_every_parameter_learns():
    network = stirred().train()
    coarse, final = network(torch.rand(2, 3, 24, 24))
    (coarse.square().mean() + final.square().mean()).backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_one_recursion_only():
    rainy = torch.rand(1, 3, 8, 8)
    assert not SemiDRDNet.recursive
    assert len(stirred()(rainy, 1)) == 2
    with pytest.raises(ValueError, match="one recursion"):
        stirred()(rainy, 2)


@pytest.mark.parametrize("wrong", [{"fold": 3}, {"window": 30}, {"window": 0}, {"detail_input": "sun"}])
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SemiDRDNet(**{**SMALL, **wrong})


def scaled_by(module: SqueezeExcitation, features: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """The paper's formula for given means: s = sigmoid(W2 relu(W1 means)), s times the features."""
    squeeze, excite = module.squeeze.weight[..., 0, 0], module.excite.weight[..., 0, 0]
    scales = torch.sigmoid(excite @ torch.relu(squeeze @ means[:, :, None]))
    return features * scales[..., None]


@pytest.mark.parametrize("height, width", [(100, 100), (60, 100), (4, 4)])
def test_pooling_is_global_on_training_patches(height, width):
    module, features = SqueezeExcitation(8, cell=4, window=25, squeezed=2), torch.randn(2, 8, height, width)
    with torch.no_grad():
        expected = scaled_by(module, features, features.mean((2, 3)))
        torch.testing.assert_close(module(features), expected)


@pytest.mark.parametrize(
    "row, column, top, left", [(4, 8, 2, 6), (0, 0, 0, 0), (11, 19, 7, 15), (1, 19, 0, 15)]
)
def test_pooling_is_over_the_window_around_the_cell(row, column, top, left):
    module, features = SqueezeExcitation(8, cell=2, window=5, squeezed=2), torch.randn(1, 8, 24, 40)
    window = features[..., 2 * top : 2 * top + 10, 2 * left : 2 * left + 10]
    cell = (..., slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2))
    with torch.no_grad():
        expected = scaled_by(module, features[cell], window.mean((2, 3)))
        torch.testing.assert_close(module(features)[cell], expected)


@pytest.mark.parametrize("size, window", [(1, 1), (3, 8), (8, 8), (9, 4), (30, 7)])
def test_windows_have_one_size_and_stay_inside(size, window):
    matrix = window_means(size, window, torch.device("cpu"))
    torch.testing.assert_close(matrix.sum(1), torch.ones(size))
    assert ((matrix > 0).sum(1) == min(size, window)).all()
    assert (matrix.diagonal() > 0).all()


@pytest.mark.parametrize("fold", [1, 2])
def test_a_crop_equals_the_whole_but_for_a_bounded_margin(fold):
    """As squeeze-and-excitation over the whole picture would not."""
    network, rainy = stirred(fold=fold), torch.rand(1, 3, 160, 200)
    margin = fold * REACH + 4
    with torch.no_grad():
        whole = network.step(rainy, rainy)
        crop = rainy[..., 20:140, 28:]
        part = network.step(crop, crop)
    inside = (..., slice(margin, -margin), slice(margin, None))
    torch.testing.assert_close(part[inside], whole[..., 20:140, 28:][inside], rtol=0, atol=1e-5)
    assert not torch.allclose(part, whole[..., 20:140, 28:], atol=1e-3)


@pytest.mark.parametrize("width", [16, 24, 64])
def test_every_dilated_gradient_in_bf16_channels_last_is_near_the_exact_one(width):
    gradients = []
    for enabled in (False, True):
        network = stirred(width=width, rain_blocks=1).train().to(memory_format=torch.channels_last)
        picture = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            estimate = network(picture.to(memory_format=torch.channels_last))[-1]
        assert estimate.dtype == torch.float32
        (estimate - 0.5).square().mean().backward()
        gradients.append({n: p.grad for n, p in network.named_parameters() if p.grad is not None})
    exact, rounded = gradients
    dilated = [name for name in exact if "branches" in name and name.endswith("weight")]
    assert len(dilated) == 6
    for name in dilated:
        similarity = torch.cosine_similarity(exact[name].flatten(), rounded[name].flatten(), dim=0)
        assert math.isfinite(similarity) and similarity > 0.9, (name, similarity)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The network, and the file that it was exported to in one recursion."""
    folder = tmp_path_factory.mktemp("export")
    network = stirred(fold=2).requires_grad_(False)
    header = {"network": "semi_drdnet", "arguments": json.dumps({**SMALL, "fold": 2})}
    save_file(network.state_dict(), folder / "weights.safetensors", header)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_PROBE_SIDE", 256)
        patch.setattr(export, "_PROBE_CUT", 96)
        path = export.export_checkpoint(folder / "weights.safetensors", folder / "small.onnx", recursions=1)
    return network, path


@pytest.mark.slow
def test_the_exported_network_gives_what_pytorch_gives(exported):
    network, path = exported
    image = natural(33, 50) / np.float32(255)
    expected = network(torch.from_numpy(image).permute(2, 0, 1)[None])[-1][0].permute(1, 2, 0)
    assert np.abs(Derainer(path)(image) - expected.clamp(0, 1).numpy()).max() < 1e-3


def test_tiles_of_the_exported_network_equal_the_whole(exported):
    _, path = exported
    card = json.loads(path.with_suffix(".json").read_text())
    assert not card["recursive"] and card["halo"] <= 2 * REACH + 8
    image = natural(211, 307)
    tiled = Derainer(path, tile=2 * card["halo"] + 64)(image)
    assert np.abs(tiled.astype(int) - Derainer(path)(image)).max() <= 1


def test_it_is_built_by_name():
    assert "semi_drdnet" in NETS
    assert isinstance(build("semi_drdnet", **SMALL), SemiDRDNet)
