"""`unrain models`: what there is to choose from, and the user's own beside it."""

import contextlib
import hashlib
import json as jsonlib
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from unrain import files, zoo
from unrain.cli.model_card import as_markdown
from unrain.cli.output import print_line
from unrain.errors import UnrainError, UsageError

if TYPE_CHECKING:
    from unrain.zoo import Model

_SUITES = {"Rain100L": "rain100l/test", "Rain100H": "rain100h/test", "Rain800": "rain800/test"}
# The set whose pictures all have 481x321 pixels.
_MIN_TEXT = 24


models = App(name="models")


@models.default
def show(
    name: Annotated[str | None, Parameter(name="NAME")] = None,
    /,
    *,
    json: bool = False,
    markdown: bool = False,
) -> None:
    """List the models, show one, add or remove your own.

    Args:
        name: A model of the list, or an ONNX file, to show all that its card says.
        json: Print the whole cards, for programs.
        markdown: Print the card of NAME as a Markdown page.
    """
    found = zoo.models() if name is None else [zoo.find(name)]
    if json:
        cards = [
            {"name": m.name, "path": str(m.path), "bytes": m.path.stat().st_size, **m.card} for m in found
        ]
        for line in jsonlib.dumps(cards, indent=2, ensure_ascii=False).split("\n"):
            print_line(line)
        return
    if markdown and name is None:
        raise UsageError("--markdown shows one model, name it: unrain models NAME --markdown")
    if not found:
        raise UnrainError("no models came with this installation, install unrain again")
    try:
        if markdown:
            lines = list(as_markdown(found[0]))
        else:
            lines = list(_table(found) if name is None else _described(found[0]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        named = " or ".join(str(model.path.with_suffix(".json")) for model in found)
        raise UnrainError(f"{named}: not as unrain export writes it ({error}), get it again") from error
    for line in lines:
        print_line(line)


@models.command
def add(
    file: Path, /, *, sha256: str | None = None, name: str | None = None, overwrite: bool = False
) -> None:
    """Add an ONNX model, which has a name from then on.

    It is tried on a small picture, then copied with its card into a folder of your own, or into the one that
    UNRAIN_MODELS names.

    Args:
        file: The model, as unrain export writes it; its card, if there is one, lies beside it as NAME.json.
        sha256: Refuse the file unless it has this SHA-256.
        name: What it is called; the file's name by default.
        overwrite: Replace a model of yours with this name.
    """
    from unrain.engine.network import LARGEST
    from unrain.engine.onnx_runtime import OnnxRuntimeEngine

    called = file.stem if name is None else name
    zoo.check_name(called)
    data = files.read(file, LARGEST, "more than an ONNX file may have: give another model")
    digest = hashlib.sha256(data).hexdigest()
    if sha256 is not None and digest != sha256.strip().lower():
        raise UnrainError(f"{file}: its SHA-256 is {digest}, not the one you gave: get the file again")
    card = zoo.find(file).card
    # Whatever is wrong with it is said now, not when it is used.
    OnnxRuntimeEngine(zoo.Model(called, file, card))
    target = zoo.user_folder() / f"{called}.onnx"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not overwrite:
            raise UnrainError(f"{called}: you have a model of this name, --overwrite replaces it")
        if card:
            described = jsonlib.dumps({**card, "name": called}, indent=2, ensure_ascii=False) + "\n"
            files.write(described.encode(), target.with_suffix(".json"))
        else:
            with contextlib.suppress(FileNotFoundError):
                target.with_suffix(".json").unlink()
    except OSError as error:
        raise files.writing_error(error, target) from error
    files.write(data, target, overwrite=overwrite)
    print_line(f"{file} -> {target} (SHA-256 {digest})")
    print_line(f"use it: unrain IN --model {called}")


@models.command
def remove(name: Annotated[str, Parameter(name="NAME")], /) -> None:
    """Remove a model that you added.

    Args:
        name: Its name.
    """
    print_line(f"removed {zoo.remove(name)}")


def _table(found: list["Model"]) -> Iterator[str]:
    """Give the lines of a table with a row for each model."""
    rows = [("model", "MB", *_SUITES)]
    for model in found:
        scores = [_score(model, suite) for suite in _SUITES.values()]
        rows.append(
            (
                model.name + " *" * (model.name == zoo.DEFAULT),
                _megabytes(model),
                *(_number(score.get("psnr"), 2) for score in scores),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    used = sum(widths) + 2 * len(widths)
    room = max(_MIN_TEXT, shutil.get_terminal_size().columns - used)
    for row, text in zip(rows, ["for", *(model.card.get("summary", "") for model in found)], strict=True):
        name, *numbers = row
        cells = [name.ljust(widths[0]), *(n.rjust(w) for n, w in zip(numbers, widths[1:], strict=True))]
        first, *others = textwrap.wrap(text, room) or [""]
        yield f"{'  '.join(cells)}  {first}".rstrip()
        yield from (" " * used + other for other in others)
    yield ""
    own = ", ".join(model.name for model in found if model.path.parent != zoo.WEIGHTS)
    if own:
        yield f"yours: {own} ({zoo.user_folder()})"
    yield "* the default. PSNR in dB on the Y channel."
    yield "unrain models NAME shows one; unrain IN --model NAME uses it."


def _described(model: "Model") -> Iterator[str]:
    """Give the lines that describe one model."""
    card = model.card
    yield model.name + " (the default)" * (model.name == zoo.DEFAULT)
    if "summary" in card:
        yield f"  {card['summary']}"
    yield ""
    parameters = card.get("parameters")
    facts = {
        "file": f"{model.path} ({_megabytes(model)} MB)",
        "network": card.get("network"),
        "parameters": f"{parameters:,}" if isinstance(parameters, int) else None,
        "recursions": f"{card['recursions']} unless --recursions says otherwise"
        if card.get("recursive")
        else None,
        "licence": card.get("licence"),
        "recipe": card.get("recipe"),
        "trained on": card.get("hardware"),
    }
    width = max(map(len, facts))
    for label, fact in facts.items():
        if fact:
            yield f"  {label:{width}}  {fact}"
    if card.get("training_data"):
        yield ""
        yield "  training data"
        yield from (f"    {one}" for one in card["training_data"])
    if card.get("scores"):
        yield ""
        yield from _scores(card["scores"])
        if card.get("scores_by"):
            yield f"  measured by: {card['scores_by']} (commit {card.get('scores_commit') or 'unknown'})"


def _scores(scores: dict[str, dict[str, float]]) -> Iterator[str]:
    """Give the lines of a table with a row for each test set and number of recursions."""
    names = max(len("test set"), *(len(key.rpartition(" T")[0]) for key in scores))
    yield f"  {'test set':{names}}  recursions  pictures   PSNR    SSIM  seconds"
    for key, score in scores.items():
        suite, _, recursions = key.rpartition(" T")
        yield (
            f"  {suite or key:{names}}  {recursions:>10}  {_number(score.get('pictures'), 0):>8}  "
            f"{_number(score.get('psnr'), 2):>5}  {_number(score.get('ssim'), 4):>6}  "
            f"{_number(score.get('seconds'), 2):>7}"
        )


def _score(model: "Model", suite: str) -> dict[str, Any]:
    """Return a model's score at its own number of recursions; empty if it was not measured."""
    scores: dict[str, dict[str, Any]] = model.card.get("scores") or {}
    return scores.get(f"{suite} T{model.card.get('recursions', 1)}", {})


def _megabytes(model: "Model") -> str:
    return f"{model.path.stat().st_size / 1e6:.1f}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
