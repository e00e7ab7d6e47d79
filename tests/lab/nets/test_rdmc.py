"""The exact RDMC: its size to the weight, any picture, and gates that travel with the weights."""

import math

import pytest
import torch

from unrain.lab.nets import NETS, build
from unrain.lab.nets.layers import pad_to_multiple
from unrain.lab.nets.rdmc import GATES, RDMC


def weights(network: RDMC) -> int:
    scalars = len(network.gates) + network.upsampling.numel()
    return sum(parameter.numel() for parameter in network.parameters()) - scalars


def tiny(**arguments) -> RDMC:
    torch.manual_seed(0)
    return RDMC(width=8, **arguments).eval()


def test_the_papers_size_with_and_without_skips():
    with torch.device("meta"):
        assert weights(RDMC()) == 19_809_990
        assert weights(RDMC(gates=())) == 15_883_731


@pytest.mark.parametrize("gate", GATES)
def test_each_skip_can_be_masked_out(gate):
    with torch.device("meta"):
        network = RDMC(width=8, gates=[name for name in GATES if name != gate])
    assert not [name for name in network.state_dict() if gate in name]
    assert len(network.gates) == 7


def test_gates_and_upsampling_are_saved():
    state = tiny().state_dict()
    assert {f"gates.{name}" for name in GATES} | {"upsampling"} <= set(state)


def test_each_gate_changes_the_result():
    network, picture = tiny(), torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        before = network(picture, 1)[-1]
        for name in GATES:
            network.gates[name] += 1
            assert not torch.equal(network(picture, 1)[-1], before), name
            network.gates[name] -= 1


def test_unknown_gate_is_named():
    with pytest.raises(ValueError, match="down9"):
        RDMC(width=8, gates=("down0", "down9"))


@pytest.mark.parametrize("height, width", [(1, 1), (2, 37), (16, 16), (33, 17)])
def test_any_size_and_every_estimate(height, width):
    picture = torch.rand(2, 3, height, width)
    with torch.no_grad():
        estimates = tiny()(picture)
        assert len(tiny()(picture, recursions=2)) == 2
    assert [estimate.shape for estimate in estimates] == [picture.shape] * 3


def test_the_recursion_is_the_papers():
    network, picture = tiny(), torch.rand(1, 3, 16, 32)
    with torch.no_grad():
        first, second = network(picture, 2)
        torch.testing.assert_close(first, network.step(picture, picture))
        torch.testing.assert_close(second, network.step(picture, first))


def test_a_network_that_predicts_no_rain_gives_the_input_back():
    network, picture = tiny(gates=()), torch.rand(1, 3, 20, 30)
    torch.nn.init.zeros_(network.output.weight)
    torch.nn.init.zeros_(network.output.bias)
    with torch.no_grad():
        torch.testing.assert_close(network(picture, 3)[-1], picture)


@pytest.mark.parametrize("width", [8, 24])
def test_every_gradient_in_bf16_channels_last_is_near_the_exact_one(width):
    torch.manual_seed(0)
    network = RDMC(width=width, recursions=1).to(memory_format=torch.channels_last)
    picture = torch.rand(2, 3, 32, 32).to(memory_format=torch.channels_last)
    gradients = []
    for enabled in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            estimate = network(picture)[-1]
        (estimate.float() - 0.5).square().mean().backward()
        gradients.append({name: weight.grad.clone() for name, weight in network.named_parameters()})
    exact, rounded = gradients
    dilated = [name for name in exact if name.startswith("encoders") and name.endswith("3.weight")]
    assert len(dilated) == 15
    for name in dilated:
        similarity = torch.cosine_similarity(exact[name].flatten(), rounded[name].flatten(), dim=0)
        assert math.isfinite(similarity) and similarity > 0.6, (name, similarity)


def test_padding_mirrors_also_beyond_the_picture():
    row = torch.arange(3.0).view(1, 1, 1, 3)
    assert pad_to_multiple(row, 8)[0, 0, 0].tolist() == [0, 1, 2, 1, 0, 1, 2, 1]
    assert pad_to_multiple(row, 8).shape[-2:] == (8, 8)


def test_nets_are_built_by_name():
    assert isinstance(build("rdmc", width=8), RDMC)
    assert "rdmc" in NETS
    with pytest.raises(ValueError, match="rdmc"):
        build("nothing")


def test_other_dilations_make_other_encoders():
    network = tiny(dilations=(1, 4), recursions=1)
    assert len(network.encoders) == 2
    with torch.no_grad():
        assert network(torch.rand(1, 3, 16, 16))[-1].shape == (1, 3, 16, 16)


@pytest.mark.parametrize("kind, mode", [(0, "bilinear"), (1, "bicubic")])
def test_doubling_is_pytorchs_interpolation(kind, mode):
    mixture = torch.full((2,), -50.0)
    mixture[kind] = 50
    features = torch.rand(2, 5, 3, 7)
    expected = torch.nn.functional.interpolate(features, scale_factor=2.0, mode=mode, align_corners=False)
    torch.testing.assert_close(tiny().doubling(features, mixture), expected)
