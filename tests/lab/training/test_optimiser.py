"""Muon against a plain loop in double precision, AdamW against PyTorch's, and resumption to the bit."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="needs the lab")

from torch import nn  # noqa: E402

from unrain.lab.nets import build  # noqa: E402
from unrain.lab.training import optimiser  # noqa: E402
from unrain.lab.training.optimiser import Muon, is_matrix, orthogonalised  # noqa: E402


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3),  # a matrix of 32 x 27
        nn.Conv2d(32, 64, 1),  # tall
        nn.Conv2d(64, 64, 3, groups=64),  # depthwise: AdamW's
        nn.Conv2d(64, 32, 1),  # wide
        nn.Conv2d(32, 64, 1),  # of the second one's shape
        nn.Conv2d(64, 3, 3),  # three outputs: AdamW's
    ).to(memory_format=torch.channels_last)


def backward(net: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    net.zero_grad()
    net(torch.rand(2, 3, 12, 12, generator=generator)).square().mean().backward()


def newton_schulz(matrix: torch.Tensor, iterations: int) -> torch.Tensor:
    """The published loop, one matrix at a time."""
    x = matrix.double() / matrix.double().norm()
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    for _ in range(iterations):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("shape", [(1, 24, 24), (3, 64, 32), (2, 32, 288)])
def test_orthogonalisation_follows_the_published_loop_and_flattens_the_spectrum(shape, bf16, monkeypatch):
    monkeypatch.setattr(optimiser, "has_bf16", lambda kind: bf16)
    torch.manual_seed(1)
    matrices = torch.randn(shape)
    results = orthogonalised(matrices, 5)
    assert results.dtype == (torch.bfloat16 if bf16 else torch.float32)
    results = results.float()
    for matrix, result in zip(matrices, results, strict=True):
        torch.testing.assert_close(result, newton_schulz(matrix, 5).float(), atol=0.03, rtol=0.05)
        values = torch.linalg.svdvals(result)
        assert values.max() < 1.3
        assert values.median() > 0.6


def test_which_parameters_are_matrices():
    names = {name for name, one in network().named_parameters() if is_matrix(one)}
    assert names == {"0.weight", "1.weight", "3.weight", "4.weight"}
    net = build("rdmc_lite", width=24, encoder=[1, 1], decoder=[1], dilations=[1, 2, 3])
    assert not any(is_matrix(one) for name, one in net.named_parameters() if "depthwise" in name)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_are_those_of_a_plain_loop_and_of_pytorchs_adamw(decay, monkeypatch):
    # bf16 is another matter: tested above.
    exact = lambda matrices, n: torch.stack([newton_schulz(one, n).float() for one in matrices])  # noqa: E731
    monkeypatch.setattr(optimiser, "orthogonalised", exact)
    net, plain = network(), network()
    muon = Muon(net.parameters(), lr=0.01, momentum=0.9, betas=(0.9, 0.99), weight_decay=decay, adamw_lr=0.5)
    others = [one for one in plain.parameters() if not is_matrix(one)]
    adamw = torch.optim.AdamW(others, lr=0.005, betas=(0.9, 0.99), weight_decay=decay)
    matrices = [one for one in plain.parameters() if is_matrix(one)]
    momenta = [torch.zeros_like(one) for one in matrices]
    for seed in range(3):
        backward(net, seed)
        plain.load_state_dict(net.state_dict())
        for mine, theirs in zip(net.parameters(), plain.parameters(), strict=True):
            theirs.grad = mine.grad.clone()
        muon.step()
        adamw.step()
        with torch.no_grad():
            for kernel, momentum in zip(matrices, momenta, strict=True):
                momentum += 0.1 * (kernel.grad - momentum)
                ahead = (0.1 * kernel.grad + 0.9 * momentum).flatten(1)
                step = newton_schulz(ahead, 5).float().view_as(kernel)
                kernel *= 1 - 0.01 * decay
                kernel -= 0.01 * 0.2 * max(ahead.shape) ** 0.5 * step
        for mine, theirs in zip(net.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


def test_a_resumed_run_takes_the_very_steps(tmp_path):
    net = network()
    muon = Muon(net.parameters(), lr=0.01)
    for seed in range(2):
        backward(net, seed)
        muon.step()
    torch.save({"net": net.state_dict(), "muon": muon.state_dict()}, tmp_path / "last.ckpt")
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    resumed = network()
    resumed.load_state_dict(kept["net"])
    other = Muon(resumed.parameters(), lr=0.5)
    other.load_state_dict(copy.deepcopy(kept["muon"]))
    for one, steps in ((net, muon), (resumed, other)):
        for seed in range(2, 5):
            backward(one, seed)
            steps.step()
    for mine, theirs in zip(net.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_parameters_without_a_gradient_stay():
    net = network()
    before = copy.deepcopy(net.state_dict())
    Muon(net.parameters(), lr=0.1, weight_decay=0.1).step()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
