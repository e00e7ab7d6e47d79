"""Which models exist, what their cards say, and where their weights are."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unrain.errors import UnrainError, UsageError

DEFAULT = "rdmc-lite"
WEIGHTS = Path(__file__).parent / "weights"


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
        if not path.is_file():
            raise UsageError(f"{path}: no such model file, check the name")
        return _load(path)
    known = ", ".join(model.name for model in models()) or "none, so install unrain again"
    raise UsageError(f"{name}: unknown model, known ones: {known}")


def _load(path: Path) -> Model:
    card_path = path.with_suffix(".json")
    try:
        card = json.loads(card_path.read_bytes()) if card_path.exists() else {}
    except (OSError, ValueError) as error:
        raise UnrainError(f"{card_path}: the model's card cannot be read ({error}), get it again") from error
    if not isinstance(card, dict):
        raise UnrainError(f"{card_path}: the model's card is no JSON object, get it again")
    return Model(path.stem, path, card)
