"""`unrain models`: what there is to choose from."""

import json as jsonlib
import shutil
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from unrain import zoo
from unrain.cli.output import print_line
from unrain.errors import UnrainError

if TYPE_CHECKING:
    from unrain.zoo import Model

_SUITES = {"Rain100L": "rain100l/test", "Rain100H": "rain100h/test", "Rain800": "rain800/test"}
# The set whose pictures all have 481x321 pixels.
_MIN_TEXT = 24


def models(name: Annotated[str | None, Parameter(name="NAME")] = None, /, *, json: bool = False) -> None:
    """List the models, or show one.

    Args:
        name: A model of the list, or an ONNX file, to show all that its card says.
        json: Print the whole cards, for programs.
    """
    found = zoo.models() if name is None else [zoo.find(name)]
    if json:
        cards = [
            {"name": m.name, "path": str(m.path), "bytes": m.path.stat().st_size, **m.card} for m in found
        ]
        for line in jsonlib.dumps(cards, indent=2, ensure_ascii=False).split("\n"):
            print_line(line)
        return
    if not found:
        raise UnrainError("no models came with this installation, install unrain again")
    try:
        lines = list(_table(found) if name is None else _described(found[0]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        named = " or ".join(str(model.path.with_suffix(".json")) for model in found)
        raise UnrainError(f"{named}: not as unrain export writes it ({error}), get it again") from error
    for line in lines:
        print_line(line)


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
