"""The preflight: a layer whose gradients are wrong in the training precision stops a run before it starts."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from unrain.errors import UnrainError
from unrain.lab.training.data import to_unit
from unrain.lab.training.losses import ContrastivePrior
from unrain.lab.training.objective import recursive_loss
from unrain.lab.training.recipe import Recipe

# What a layer was given, and the gradient of its output.
Call = tuple[tuple[Tensor, ...], Tensor]


def preflight(
    net: nn.Module,
    batch: tuple[Tensor, ...],
    recipe: Recipe,
    prior: ContrastivePrior | None = None,
    *,
    tolerance: float = 0.1,
) -> dict[str, float]:
    """Compare each layer's gradients in the training precision with float32 on what one batch brings it.

    Some kernels are wrong in bf16 (dilated convolutions with channels_last on the CPU, torch 2.13: 30 to 60
    per cent off, or not a number; right ones differ by about 1 per cent); training then fails silently.
    Layer by layer, because rounding alone, through ReLU and max-pooling, turns the gradient of a whole
    network without any error (RDMC's by 30 per cent in one recursion, by 95 in two). Parameters that start at
    zero are moved off zero in a copy first, since they would hide the gradient of everything before them.

    Args:
        net: The network; it is not changed.
        batch: Rainy and clean patches, N x 3 x H x W uint8; anything else is ignored.
        recipe: Gives the precision and the loss.
        prior: The contrastive prior, if the recipe has one.
        tolerance: Largest allowed relative difference |g - g32| / |g32|.

    Returns:
        The relative difference for each parameter, and each input, of a layer that was compared.

    Raises:
        UnrainError: Gradients are off; the message names the layers.
    """
    probe = copy.deepcopy(net).train()
    generator = torch.Generator().manual_seed(0)
    for parameter in probe.parameters():
        if not parameter.detach().any():
            noise = torch.randn(parameter.shape, generator=generator) * 0.05
            parameter.data.copy_(noise)
    rainy, clean = (to_unit(side) for side in batch[:2])
    bf16 = recipe.bf16
    calls: dict[str, list[Call]] = {}
    layers = {
        name: layer
        for name, layer in probe.named_modules()
        if not list(layer.children()) and (list(layer.parameters()) or list(layer.buffers()))
    }
    hooks = [
        layer.register_forward_hook(_recorder(calls.setdefault(name, []))) for name, layer in layers.items()
    ]
    with torch.autocast(rainy.device.type, torch.bfloat16, enabled=bf16):
        estimates = probe(rainy, max(s.recursions for s in recipe.stages))
        loss = recursive_loss(estimates, rainy, clean, recipe, prior)
    loss.backward()  # type: ignore[no-untyped-call]
    for hook in hooks:
        hook.remove()
    off: dict[str, float] = {}
    for name, layer in layers.items():
        exact, trained = (_gradients(layer, calls[name], exact=one, bf16=bf16) for one in (True, False))
        whole = max((float(g.norm()) for key, g in exact.items() if "input" not in key), default=0.0)
        for key, reference in exact.items():
            size = float(reference.norm())
            difference = float((trained[key] - reference).norm())
            # What almost cancels out is rounding (a bias before normalisation); a NaN always counts.
            if size > 1e-3 * whole or not math.isfinite(difference):
                off[f"{name}.{key}"] = difference / max(size, 1e-12)
    wrong = {name: error for name, error in off.items() if not error <= tolerance}
    if wrong:
        named = ", ".join(
            f"{name} ({error:.0%})" if math.isfinite(error) else f"{name} (NaN)"
            for name, error in wrong.items()
        )
        raise UnrainError(
            f"recipe: gradients in {'bf16' if bf16 else 'fp32'} differ from float32 in {named}; "
            'compute these layers in float32, change them (dilation, channels), or give precision = "fp32"'
        )
    return off


def _recorder(calls: list[Call]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    """Return a hook that records a layer's inputs and the gradient of its output."""

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        given = tuple(one.detach() for one in inputs)
        output.register_hook(lambda gradient: calls.append((given, gradient)))  # type: ignore[no-untyped-call]

    return record


def _gradients(layer: nn.Module, calls: list[Call], *, exact: bool, bf16: bool) -> dict[str, Tensor]:
    """Repeat a layer's calls alone; return the gradients of its parameters and inputs."""
    # The reference also avoids the memory layout in which those kernels are wrong.
    layer = copy.deepcopy(layer).to(memory_format=torch.contiguous_format) if exact else layer  # type: ignore[call-overload]
    layer.zero_grad()
    gradients: dict[str, Tensor] = {}
    for number, (given, gradient) in enumerate(calls):
        inputs = [one.float().contiguous() if exact else one for one in given]
        inputs = [one.detach().requires_grad_() for one in inputs]
        with torch.autocast(gradient.device.type, torch.bfloat16, enabled=bf16 and not exact):
            output = layer(*inputs)
        output.backward(gradient.to(output.dtype))
        for i, one in enumerate(inputs):
            # Of a few numbers (RDMC's mixture of upsamplings), sums over all pixels, too much cancels out.
            if one.grad is not None and one.dim() == 4:
                gradients[f"input{number}.{i}"] = one.grad.float()
    named = layer.named_parameters()
    return gradients | {name: one.grad.float() for name, one in named if one.grad is not None}
