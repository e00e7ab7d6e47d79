"""Checkpoints of networks: load, save, interpolate, average, and identify by SHA-256."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from unrain.errors import UnrainError
from unrain.files import reading_problem, write
from unrain.lab.nets import build
from unrain.lab.nets.layers import RecursiveNet
from unrain.zoo import stages

# Widths, depths and numbers of recursions are far below.
_LARGEST_ARGUMENT = 4096


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        net: The network; in evaluation mode when loaded.
        network: Its name for `build`.
        arguments: Its constructor arguments.
        card: What training wrote for the model's card.
    """

    net: RecursiveNet
    network: str
    arguments: dict[str, Any]
    card: dict[str, Any]


def load_checkpoint(path: Path) -> Checkpoint:
    """Build the network that a checkpoint holds; nothing in the file is ever executed.

    Args:
        path: `weights.safetensors` with "network", "arguments" and "card" (JSON) in its header, or a
            Lightning .ckpt with them under the key "unrain"; the card may be missing. A .ckpt's averaged
            weights are taken: Lightning's weight averaging stores them as the state_dict.

    Raises:
        UnrainError: The file is missing, damaged or from another program.
    """
    if not path.is_file():
        raise UnrainError(f"{path}: no such checkpoint")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
            name, arguments = header["network"], json.loads(header["arguments"])
            card = json.loads(header.get("card", "{}"))
            state = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
            name, arguments = content["unrain"]["network"], content["unrain"]["arguments"]
            card = content["unrain"].get("card", {})
            weights = content["state_dict"].items()
            state = {key.removeprefix("net."): value for key, value in weights if key.startswith("net.")}
        _check_size(path, name, arguments)
        net = build(name, **arguments)
        net.load_state_dict(state)
    except KeyError as error:
        raise UnrainError(f"{path}: lacks {error}; give a checkpoint of `unrain train`") from error
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError, EOFError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UnrainError(f"{path}: not a checkpoint of this version ({reason})") from error
    except Exception as error:  # the unpickler's own exceptions for files that are none
        raise UnrainError(f"{path}: not a checkpoint; give one of `unrain train`") from error
    net.levels = card.get("levels", 1)
    return Checkpoint(net.eval().requires_grad_(False), name, arguments, card)


def _check_size(path: Path, name: str, arguments: dict[str, Any]) -> None:
    """Refuse a header that asks for a far larger network than the file can hold, before it is built.

    Raises:
        ValueError: It asks for more weights than the file has bytes.
    """
    numbers = [arguments[key] for key in arguments]
    while numbers:
        number = numbers.pop()
        if isinstance(number, list | tuple):
            numbers += number
        elif isinstance(number, int) and number > _LARGEST_ARGUMENT:
            raise ValueError(f"{number} in its header is out of range")
    with torch.device("meta"):
        weights = sum(value.numel() for value in build(name, **arguments).state_dict().values())
    if weights > path.stat().st_size:
        raise ValueError(f"its header asks for {weights} weights, more than the file can hold")


def save_checkpoint(path: Path, checkpoint: Checkpoint, *, half: bool = False) -> None:
    """Write a network as `load_checkpoint` reads it: the file is whole or not there.

    Args:
        path: The .safetensors file; its folder exists.
        checkpoint: The network and its header.
        half: Store floating-point weights in half precision, for the repository.

    Raises:
        UnrainError: The file cannot be written.
    """
    header = {
        "network": checkpoint.network,
        "arguments": json.dumps(checkpoint.arguments),
        "card": json.dumps(checkpoint.card),
    }
    state = {name: value.detach().cpu().contiguous() for name, value in checkpoint.net.state_dict().items()}
    if half:
        state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    write(save(state, header), path)


def interpolate_weights(start: dict[str, Tensor], end: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Interpolate linearly between two sets of weights of the same network.

    Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022.

    Args:
        start: The weights at share 0.
        end: The weights at share 1; integers (BatchNorm's counters) are always those of the end.
        share: Between 0 and 1.
    """
    return {
        name: torch.lerp(start[name], value, share) if value.is_floating_point() else value
        for name, value in end.items()
    }


def average(checkpoints: Sequence[Checkpoint], shares: Sequence[float] = ()) -> Checkpoint:
    """Return the weighted mean of several checkpoints: runs that went on from the same weights gain by it.

    Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without
    increasing inference time", ICML 2022.

    Args:
        checkpoints: Of the same network. What no mean can be of (BatchNorm's counters) and the card are those
            of the first; the card names the others under "mean_with", with steps and time where they are not
            among what the first went on from.
        shares: Of each checkpoint, in their order; equal when empty. They are divided by their sum.

    Raises:
        ValueError: The networks differ, or the shares are not positive numbers, one for each checkpoint.
    """
    first, *others = checkpoints
    if any((other.network, other.arguments) != (first.network, first.arguments) for other in others):
        raise ValueError("their networks differ")
    equal = not shares
    shares = shares or [1.0] * len(checkpoints)
    if len(shares) != len(checkpoints):
        raise ValueError(f"{len(shares)} shares for {len(checkpoints)} checkpoints")
    if not all(0 < share < math.inf for share in shares):
        raise ValueError("each share must be a number above 0")
    states = [checkpoint.net.state_dict() for checkpoint in checkpoints]
    parts = torch.tensor(shares, dtype=torch.float64) / sum(shares)
    means = {
        name: torch.einsum("s,s...->...", parts, torch.stack([state[name].double() for state in states])).to(
            value.dtype
        )
        if value.is_floating_point()
        else value
        for name, value in states[0].items()
    }
    net = build(first.network, **first.arguments)
    net.load_state_dict(means)
    net.levels = first.net.levels
    chain = {stage.get("recipe") for stage in stages(first.card)}
    told = []
    for card, share in zip((other.card for other in others), parts[1:].tolist(), strict=True):
        keys = ("recipe",) if card.get("recipe") in chain else ("recipe", "steps", "wall_time")
        own = {} if equal else {"share": round(share, 4)}
        told.append({key: card[key] for key in keys if key in card} | own)
    return Checkpoint(
        net.eval().requires_grad_(False), first.network, first.arguments, {**first.card, "mean_with": told}
    )


def with_arguments(checkpoint: Checkpoint, changes: Mapping[str, Any]) -> Checkpoint:
    """Return a checkpoint's weights in a network with other arguments, such as RDMC-lite's threshold.

    Args:
        checkpoint: The weights.
        changes: Arguments of the network that have no weights, by name.

    Raises:
        ValueError: The network has no such argument, refuses the value, or would need other weights.
    """
    arguments = {**checkpoint.arguments, **changes}
    try:
        net = build(checkpoint.network, **arguments)
        net.load_state_dict(checkpoint.net.state_dict())
    except (TypeError, RuntimeError) as error:
        given = ", ".join(f"{name} = {value}" for name, value in changes.items())
        raise ValueError(f"{checkpoint.network} does not take {given} with these weights") from error
    net.levels = checkpoint.net.levels
    return dataclasses.replace(checkpoint, net=net.eval().requires_grad_(False), arguments=arguments)


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal.

    Raises:
        UnrainError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UnrainError(f"{path}: {reading_problem(error)}") from error
