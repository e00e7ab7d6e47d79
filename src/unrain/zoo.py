"""Which models exist, what their cards say, and where their weights are."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unrain import files
from unrain.errors import UnrainError, UsageError

DEFAULT = "rdmc-lite"
WEIGHTS = Path(__file__).parent / "weights"
_LARGEST_CARD = 1 << 22


@dataclass(frozen=True)
class Model:
    """A network that is ready to run.

    Attributes:
        name: What `--model` calls it.
        path: Its ONNX file.
        card: What it was trained on, how, how well it does, its licence, and the run-time contract
            (`multiple`, `halo`, `recursions`, `recursive`). Empty for an ONNX file without a card beside it:
            the engine then reads the contract from the file itself.
    """

    name: str
    path: Path
    card: dict[str, Any] = field(hash=False)


def models() -> list[Model]:
    """List the models that came with the package, the default one first."""
    found = [_load(path) for path in sorted(WEIGHTS.glob("*.onnx"))]
    return sorted(found, key=lambda model: model.name != DEFAULT)


def find(name_or_path: str | Path) -> Model:
    """Find a model by its name in the zoo, or take an ONNX file.

    Args:
        name_or_path: A name that `models` lists, or the path of an `.onnx` file.

    Raises:
        UsageError: There is no such model or file.
        UnrainError: Its card cannot be read.
    """
    name = str(name_or_path)
    if isinstance(name_or_path, str) and (WEIGHTS / f"{name}.onnx") in WEIGHTS.glob("*.onnx"):
        return _load(WEIGHTS / f"{name}.onnx")
    path = Path(name_or_path)
    if path.suffix.lower() == ".onnx" or path.is_file():
        if not path.exists():
            raise UsageError(f"{path}: no such model file, check the name")
        return _load(path)
    known = ", ".join(model.name for model in models()) or "none, so install unrain again"
    raise UsageError(f"{name}: unknown model, known ones: {known}")


def _load(path: Path) -> Model:
    card_path = path.with_suffix(".json")
    # A file may be called by bytes that no text holds, which an answer of the server could not be made of.
    name = path.stem.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    # A link that leads nowhere is an error too: the contract in it is missed.
    if not os.path.lexists(card_path):
        return Model(name, path, {})
    data = files.read(card_path, _LARGEST_CARD, "get it again")
    try:
        return Model(name, path, json_object(data))
    except ValueError as error:
        raise UnrainError(f"{card_path}: the model's card cannot be read ({error}), get it again") from error


def json_object(text: str | bytes) -> dict[str, Any]:
    """Read a JSON object that somebody else wrote.

    Raises:
        ValueError: It is none, or nested too deeply.
    """
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found
