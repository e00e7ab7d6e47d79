"""The tables of scores in README.md and docs/benchmark.md, written from the cards and `reference.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from unrain import zoo
from unrain.errors import UnrainError
from unrain.files import write
from unrain.zoo import Model

BEGIN = "<!-- scores: written by unrain bench --readme, from the models' cards -->"
BEGIN_ALL = "<!-- all scores: written by unrain bench --readme, from the models' cards -->"
END = "<!-- end of scores -->"

_SUITES = {
    "rain100l/test": "Rain100L",
    "rain100h/test": "Rain100H",
    "rain800/test": "Rain800",
    "clean/kodak24": "Kodak24, no rain",
}
SUMMARY_SUITES = ("rain100l/test", "rain100h/test", "rain800/test")
# The file of each baseline's weights, and the set that it was trained for.
BASELINES = {
    "PReNet, trained on Rain100L": ("prenet_rain100l.safetensors", "rain100l/test"),
    "PReNet, trained on Rain100H": ("prenet_rain100h.safetensors", "rain100h/test"),
}
_NONE = "-"

# Storing weights in half precision moves a score by up to 0.01 dB.
_SAME_WEIGHTS = 0.015


def summary_table(models: Iterable[Model]) -> str:
    """Return the README's table: the default model, the smallest, the baselines and the rainy input.

    Models run with their default number of recursions. The columns are PSNR in dB and SSIM on Y, the share of
    streaks removed from real rain, and the seconds that one picture takes.
    """
    rows = []
    for model in shown_models(models):
        role = "default" if model.name == zoo.DEFAULT else "smallest"
        rows.append((model.name, f"`{model.name}`, the {role}", scores_of(model), real_rain_of(model)))
    for name, scores in _baselines().items():
        rows.append((name, name, scores, reference()["real_rain"].get(name)))
    titles = [_SUITES[suite] for suite in SUMMARY_SUITES]
    lines = _head(["", *titles, "real rain", "481x321", "12 megapixels"])
    for name, label, scores, real_rain in rows:
        pairs = [_pair(scores.get(suite)) for suite in SUMMARY_SUITES]
        removed = f"{100 * real_rain['streaks']:.1f} %" if real_rain else _NONE
        seconds = reference()["seconds"].get(name, {})
        times = [f"{seconds[size]:.2g} s" if size in seconds else _NONE for size in ("small", "large")]
        lines.append(_line([label, *pairs, removed, *times]))
    return "\n".join(lines) + "\n"


def shown_models(models: Iterable[Model]) -> list[Model]:
    """Return the models of the summary: the default one and the smallest."""
    models = list(models)
    default = [model for model in models if model.name == zoo.DEFAULT]
    return default + sorted(models, key=lambda model: model.card.get("parameters", float("inf")))[:1]


def full_table(models: Iterable[Model]) -> str:
    """Return all scores in the cards beside the baselines, the commands that measured them, and real rain."""
    models = list(models)
    found = {suite for model in models for scores in _scores(model).values() for suite in scores}
    suites = [*_SUITES, *sorted(found - _SUITES.keys())]
    lines = _head(["model", "recursions", *(_SUITES.get(suite, suite) for suite in suites)])
    sources = []
    for model in models:
        for recursions, scores in sorted(_scores(model).items()):
            pairs = [_pair(scores.get(suite)) for suite in suites]
            lines.append(_line([f"`{model.name}`", recursions, *pairs]))
        if model.card.get("scores"):
            sources.append(f"`{model.card['scores_by']}` at commit {model.card['scores_commit']}")
    for name, scores in _baselines().items():
        lines.append(_line([name, "", *(_pair(scores.get(suite)) for suite in suites)]))
    lines += ["", f"Measured by {'; '.join(sources)}.", ""]
    lines += _head(["real rain", "NIQE", "BRISQUE", "streaks removed", "away"])
    real_rain = {f"`{model.name}`": real_rain_of(model) for model in models}
    real_rain |= {name: reference()["real_rain"].get(name) for name in _baselines()}
    for label, one in real_rain.items():
        if one:
            digits = {"niqe": 3, "brisque": 2, "streaks": 3, "away": 2}
            lines.append(_line([label, *(f"{one[name]:.{places}f}" for name, places in digits.items())]))
    return "\n".join(lines) + "\n"


def with_table(text: str, begin: str, table: str) -> str:
    """Return a page's text with the table between its two marks.

    Raises:
        ValueError: The marks are not there, once each and in order.
    """
    before, mark, rest = text.partition(begin)
    _, end, after = rest.partition(END)
    if not (mark and end) or begin in after or END in after:
        raise ValueError(f"has no place for the scores: put {begin} and {END} on two lines")
    return f"{before}{begin}\n{table}{END}{after}"


def write_scores(readme: Path, models: Iterable[Model]) -> None:
    """Write the summary into a README and, where it is beside it, all scores into docs/benchmark.md.

    Raises:
        UnrainError: A file cannot be read or written, or has no marks; then none is changed.
    """
    models = list(models)
    tables = [(readme, BEGIN, summary_table(models))]
    benchmark = readme.parent / "docs" / "benchmark.md"
    if benchmark.is_file():
        tables.append((benchmark, BEGIN_ALL, full_table(models)))
    pages = []
    for path, begin, table in tables:
        try:
            pages.append((path, with_table(path.read_text(encoding="utf-8"), begin, table)))
        except ValueError as error:
            raise UnrainError(f"{path}: {error}") from error
        except OSError as error:
            raise UnrainError(f"{path}: cannot be read ({error.strerror}), check the path") from error
    for path, text in pages:
        write(text.encode(), path)


@lru_cache
def reference() -> dict[str, dict[str, Any]]:
    """Read `reference.toml`."""
    return tomllib.loads(Path(__file__).with_name("reference.toml").read_text(encoding="utf-8"))


def _baselines() -> dict[str, dict[str, Sequence[float]]]:
    """Return PSNR and SSIM of each baseline on each suite."""
    baselines: dict[str, dict[str, Sequence[float]]] = reference()["scores"]
    return baselines


def scores_of(model: Model) -> dict[str, Sequence[float]]:
    """Return PSNR and SSIM in a card at the model's own number of recursions, by suite."""
    return _scores(model).get(model.card.get("recursions", 1), {})


def _scores(model: Model) -> dict[int, dict[str, Sequence[float]]]:
    """Return PSNR and SSIM in a card, by number of recursions and suite."""
    found: dict[int, dict[str, Sequence[float]]] = {}
    for key, score in model.card.get("scores", {}).items():
        suite, _, recursions = key.rpartition(" T")
        found.setdefault(int(recursions), {})[suite] = score["psnr"], score["ssim"]
    return found


def real_rain_of(model: Model) -> dict[str, float] | None:
    """Return what was measured on real rain with the weights that the card is about, None if nothing was."""
    measured: dict[str, float] | None = reference()["real_rain"].get(model.name)
    psnr, _ = _scores(model).get(1, {}).get("rain100l/test", (float("nan"), 0.0))
    return measured if measured and abs(measured["rain100l"] - psnr) < _SAME_WEIGHTS else None


def _pair(score: Sequence[float] | None) -> str:
    return f"{score[0]:.2f} / {score[1]:.4f}" if score else _NONE


def _head(titles: Sequence[str]) -> list[str]:
    return [_line(titles), "|" + "---|" * len(titles)]


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
