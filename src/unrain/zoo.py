"""Which models exist, what their cards say, and where their weights are.

Beside those of the package there is a folder of the user's own, `user_folder`.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unrain import files
from unrain.errors import UnrainError, UsageError

DEFAULT = "rdmc-lite"
# What the page calls them, so that nobody has to know their names.
PURPOSES = {DEFAULT: "best", "rdmc-lite-xs": "fast"}
WEIGHTS = Path(__file__).parent / "weights"
_LARGEST_CARD = 1 << 22
# What every file system and command line takes, and no option begins with.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# What may follow `unrain models` besides names.
COMMANDS = frozenset({"add", "remove"})


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


def built_in() -> list[Model]:
    """List the models that came with the package, the default one first."""
    found = [_load(path) for path in sorted(WEIGHTS.glob("*.onnx"))]
    return sorted(found, key=lambda model: model.name != DEFAULT)


def user_folder() -> Path:
    """Return the folder of the user's own models, whether it exists or not.

    The environment variable UNRAIN_MODELS names another one.
    """
    if named := os.environ.get("UNRAIN_MODELS"):
        return Path(named).absolute()
    import platformdirs

    return Path(platformdirs.user_data_path("unrain", appauthor=False)) / "models"


def added() -> list[Model]:
    """List the models that the user added.

    One with the name of a built-in model is left out: that name stays what it is.
    """
    folder = user_folder()
    found = sorted(folder.glob("*.onnx"))
    return [_load(path) for path in found if _NAME.fullmatch(path.stem) and not _is_built_in(path.stem)]


def models() -> list[Model]:
    """List the models that can be named: those of the package, the default one first, then the user's own."""
    return built_in() + added()


def find(name_or_path: str | Path) -> Model:
    """Find a model by its name in the zoo, or take an ONNX file.

    Args:
        name_or_path: A name that `models` lists, or the path of an `.onnx` file.

    Raises:
        UsageError: There is no such model or file.
        UnrainError: Its card cannot be read.
    """
    name = str(name_or_path)
    if isinstance(name_or_path, str):
        if _is_built_in(name):
            return _load(WEIGHTS / f"{name}.onnx")
        if _NAME.fullmatch(name) and (own := user_folder() / f"{name}.onnx").is_file():
            return _load(own)
    path = Path(name_or_path)
    if path.suffix.lower() == ".onnx" or path.is_file():
        if not path.exists():
            raise UsageError(f"{path}: no such model file, check the name")
        return _load(path)
    known = ", ".join(model.name for model in models()) or "none, so install unrain again"
    raise UsageError(f"{name}: unknown model, known ones: {known}")


def check_name(name: str) -> None:
    """Refuse a name that a model of the user's own cannot have.

    Raises:
        UsageError: It has other characters than letters, digits, dots, dashes and underscores, or is that of
            a built-in model.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name}: no name for a model, give one of letters, digits, dots, dashes and underscores "
            "with --name"
        )
    if _is_built_in(name):
        raise UsageError(f"{name}: the name of a model that came with unrain, give another with --name")
    if name in COMMANDS:
        raise UsageError(f"{name}: the name of a command, give another with --name")


def remove(name: str) -> Path:
    """Remove a model that the user added.

    Returns:
        The file that is gone; its card is, too.

    Raises:
        UsageError: There is no such model, or it came with the package.
        UnrainError: It cannot be removed.
    """
    path = user_folder() / f"{name}.onnx"
    if not _NAME.fullmatch(name) or not os.path.lexists(path):
        if _is_built_in(name):
            raise UsageError(f"{name}: came with unrain and stays, only added models can be removed")
        own = ", ".join(model.name for model in added()) or "none"
        raise UsageError(f"{name}: no model that was added, those are: {own}")
    try:
        # Its card last: a model without its card would be another one.
        path.unlink()
        with contextlib.suppress(FileNotFoundError):
            path.with_suffix(".json").unlink()
    except OSError as error:
        raise UnrainError(f"{path}: cannot be removed ({files.one_line(error.strerror or error)})") from error
    return path


def _is_built_in(name: str) -> bool:
    return (WEIGHTS / f"{name}.onnx") in WEIGHTS.glob("*.onnx")


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


def stages(card: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Give the stages of training that a card tells of, the last one, the card itself, first."""
    stage: dict[str, Any] | None = card
    while stage:
        yield stage
        stage = stage.get("went_on_from")


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
