"""What can be measured: models, checkpoints, peers' weights, and pictures derained elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from unrain import zoo
from unrain.derainer import Derainer
from unrain.devices import Processor
from unrain.engine import open_engine
from unrain.errors import UnrainError, UsageError
from unrain.lab.bench.options import CPU
from unrain.lab.checkpoint import load_checkpoint
from unrain.lab.data.pairs import key, pictures, read
from unrain.lab.data.rain import RGB8
from unrain.lab.export import measure_halo
from unrain.lab.nets import build
from unrain.lab.nets.layers import RecursiveNet
from unrain.lab.torch_engine import TorchEngine

CHECKPOINTS = {".ckpt", ".safetensors"}


@dataclass(frozen=True)
class Candidate:
    """Something to measure.

    Attributes:
        name: What the tables call it.
        source: An exported model, a network, or a folder of results; None for the rainy pictures themselves.
    """

    name: str
    source: zoo.Model | RecursiveNet | Path | None


def find(name: str) -> Candidate:
    """Find out what a name of the command line means.

    Args:
        name: A model of the zoo, an ONNX file, a checkpoint, or a folder of derained pictures.

    Raises:
        UnrainError: It is none of these, or broken.
    """
    path = Path(name)
    if path.suffix in CHECKPOINTS:
        label = path.parent.name if path.stem in ("weights", "last") else path.stem
        return Candidate(label, load_checkpoint(path).net)
    if path.is_dir() and name not in {model.name for model in zoo.models()}:
        return Candidate(path.resolve().name, path)
    model = zoo.find(name)
    return Candidate(model.name, model)


def find_peer(text: str) -> Candidate:
    """Load weights from elsewhere into one of our networks.

    Args:
        text: NETWORK:FILE, for example `prenet:prenet_rain100l.safetensors`.

    Raises:
        UsageError: There is no such network.
        UnrainError: No such file, or weights of another network.
    """
    network, colon, file = text.partition(":")
    if not (network and colon and file):
        raise UsageError(f"{text}: give a peer as NETWORK:FILE, for example prenet:weights.safetensors")
    path = Path(file)
    try:
        net = build(network)
        net.load_state_dict(load_file(path))
    except ValueError as error:
        raise UsageError(f"{text}: {error}") from error
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UnrainError(f"{path}: not the weights of a {network} ({reason})") from error
    return Candidate(path.stem, net)


def open_derainer(
    source: zoo.Model | RecursiveNet,
    recursions: int | None,
    processor: Processor = CPU,
    *,
    levels: int | None = 1,
    halo: int | None = None,
) -> tuple[Derainer, int]:
    """Make a network ready to run; by default at full size whatever the picture's: the field's protocol.

    Args:
        source: An exported model, or a network.
        recursions: How many; the network's own number when None.
        processor: What an exported model runs on. A network runs in PyTorch: on the CPU unless this is torch
            with a device.
        levels: At how many sizes a picture is looked at, see `Derainer`.
        halo: Context at the edges of tiles, see `halo_of`, for a network that is not exported; it takes every
            picture whole when None.

    Returns:
        The Derainer, and how many recursions the network makes for a picture.
    """
    if isinstance(source, zoo.Model):
        derainer = Derainer(open_engine(source, processor), recursions=recursions, levels=levels)
        return derainer, derainer.recursions
    engine = TorchEngine(source, recursions=recursions, processor=processor)
    if halo is not None:
        engine.halo = halo
    derainer = Derainer(engine, recursions=recursions if engine.recursive else None, levels=levels)
    return derainer, derainer.recursions * engine.recursions_per_step


def halo_of(net: RecursiveNet, recursions: int | None = None) -> int:
    """Return the context in pixels that a tile needs in one step of `TorchEngine`.

    Args:
        net: A network that has not been exported.
        recursions: How many it makes; its own number when None.

    Raises:
        UnrainError: It sees farther than can be measured.
    """
    if net.reach is not None:
        return net.reach * (1 if net.recursive else recursions or net.recursions)
    return measure_halo(net.eval(), None if net.recursive else 1)


def find_results(folder: Path, suite: str) -> Callable[[str], RGB8]:
    """Look up derained pictures by the names of their pairs.

    Args:
        folder: Where the pictures are: in a sub-folder called like the suite, or directly.
        suite: The suite.

    Returns:
        What gives the picture of a name. Extensions, the suffix "_derained" and what tells the two sides of
        a suite apart (the prefixes "rain-" and "norain-", ...) make no difference; sub-folders do where names
        alone are not enough. It raises UnrainError where there is none, or more than one.
    """
    here = folder / suite if (folder / suite).is_dir() else folder
    by_name: dict[str, list[Path]] = {}
    for path in pictures(here):
        inside = path.relative_to(here).parent
        for name in {_plain(path.stem), (inside / _plain(path.stem)).as_posix()}:
            by_name.setdefault(name, []).append(path)

    def look_up(name: str) -> RGB8:
        bare = _plain(Path(name).name)
        found = by_name.get(Path(name).with_name(bare).as_posix()) or by_name.get(bare, [])
        if len(found) != 1:
            several = f": {', '.join(path.name for path in found)}" if found else ""
            raise UnrainError(f"{here}: {len(found) or 'no'} pictures for {name} of {suite}{several}")
        return read(found[0])

    return look_up


def _plain(stem: str) -> str:
    return key(stem.removesuffix("_derained"))


def to_8_bit(picture: NDArray[np.uint8] | NDArray[np.float32], *, truncate: bool = False) -> RGB8:
    """Turn floats in [0, 1] into 8 bits as the Derainer does, or by cutting the fraction off."""
    if picture.dtype == np.uint8:
        return np.asarray(picture, np.uint8)
    values = np.asarray(picture, np.float32) * np.float32(255)
    whole: NDArray[np.float32] = np.floor(values) if truncate else np.rint(values)
    return whole.astype(np.uint8)
