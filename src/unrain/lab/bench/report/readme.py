"""The README's table of results, written from the cards of the models."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from unrain import files
from unrain.errors import UnrainError
from unrain.zoo import Model

BEGIN = "<!-- scores: written by unrain bench --readme, from the models' cards -->"
END = "<!-- end of scores -->"

_REMARKS = {
    "rain100l/test": "light rain",
    "rain100h/test": "heavy rain",
    "rain800/test": "mixed rain",
    "clean/kodak24": "clean photographs against themselves",
}


def scores_table(models: Iterable[Model]) -> str:
    """Return the scores in the models' cards as Markdown, and the commands that measured them."""
    lines = ["| model | recursions | set | pictures | PSNR | SSIM | |", "|---|---|---|---|---|---|---|"]
    sources: list[str] = []
    for model in models:
        rows = []
        for key, score in model.card.get("scores", {}).items():
            suite, _, recursions = key.rpartition(" T")
            order = list(_REMARKS).index(suite) if suite in _REMARKS else len(_REMARKS)
            rows.append((order, suite, int(recursions), score))
        for _, suite, recursions, score in sorted(rows, key=lambda row: row[:3]):
            lines.append(
                f"| `{model.name}` | {recursions} | {suite} | {score['pictures']} | {score['psnr']:.2f} "
                f"| {score['ssim']:.4f} | {_REMARKS.get(suite, '')} |"
            )
        if rows:
            sources.append(f"`{model.card['scores_by']}` at commit {model.card['scores_commit']}")
    return "\n".join(lines) + f"\n\nMeasured by {'; '.join(sources)}.\n"


def with_scores(text: str, models: Iterable[Model]) -> str:
    """Return a README's text with the table of scores between its two marks.

    Raises:
        ValueError: The marks are not there, once each and in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in after or END in after:
        raise ValueError(f"has no place for the scores: put {BEGIN} and {END} on two lines")
    return f"{before}{BEGIN}\n{scores_table(models)}{END}{after}"


def write_scores(readme: Path, models: Iterable[Model]) -> None:
    """Write the table of scores into a README, atomically.

    Raises:
        UnrainError: The file cannot be read or written, or has no marks.
    """
    try:
        text = with_scores(readme.read_text(encoding="utf-8"), models)
    except ValueError as error:
        raise UnrainError(f"{readme}: {error}") from error
    except OSError as error:
        raise UnrainError(f"{readme}: {files.reading_problem(error)}") from error
    files.write(text.encode(), readme)
