"""`unrain bench`: whole test sets through the same `Derainer` as every other picture.

Any candidate (`unrain.lab.bench.candidates`) is measured on any suite (`unrain.lab.data.suites`) by PSNR and
SSIM on Y and by further measures on request (`unrain.lab.metrics.measures`).
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unrain import files
from unrain.derainer import Derainer
from unrain.devices import Processor
from unrain.errors import UnrainError
from unrain.lab.bench.cache import Results, fingerprint, identity, open_results
from unrain.lab.bench.candidates import Candidate, find_results, open_derainer, to_8_bit
from unrain.lab.bench.options import CPU
from unrain.lab.data.pairs import Pair
from unrain.lab.data.suites import SUITES, Suite, open_suite
from unrain.lab.metrics.measures import Measures, Values, fidelity, open_measures
from unrain.zoo import Model

INPUT = Candidate("input", None)
_IN_CARD = ("pictures", "psnr", "ssim", "seconds", "psnr_rgb", "ssim_rgb", "lpips")
_DIGITS = {"psnr": 3, "psnr_rgb": 3, "ssim": 4, "ssim_rgb": 4, "seconds": 3}

Restored = NDArray[np.uint8] | NDArray[np.float32]


@dataclass(frozen=True)
class Summary:
    """Everything that was measured of a model on a suite: means, None where something was not measured.

    Attributes:
        suite: Name of the set.
        pictures: How many were measured: all.
        recursions: T; None where nothing was run, for pictures derained elsewhere.
        psnr: Y-channel PSNR in dB.
        ssim: Y-channel SSIM.
        seconds: Time for a picture; None where nothing was run.
        truncated: Whether results were truncated to 8 bits instead of rounded.
        psnr_rgb: PSNR over all three channels.
        ssim_rgb: Mean SSIM of the three channels.
        lpips: LPIPS, AlexNet, version 0.1.
        niqe: NIQE.
        brisque: BRISQUE.
        streaks_removed: Share of the streak energy removed, see `unrain.lab.metrics.streaks`.
        streak_pictures: How many pictures have streaks enough to count for that share.
        change_away: Mean absolute change away from streaks, in steps of 8 bits.
        chroma: Mean absolute change of Cb and Cr, see `unrain.lab.metrics.chroma`.
        reused: How many pictures an earlier run had measured already.
    """

    suite: str
    pictures: int
    recursions: int | None
    psnr: float | None
    ssim: float | None
    seconds: float | None
    truncated: bool = False
    psnr_rgb: float | None = None
    ssim_rgb: float | None = None
    lpips: float | None = None
    niqe: float | None = None
    brisque: float | None = None
    streaks_removed: float | None = None
    streak_pictures: int | None = None
    change_away: float | None = None
    chroma: float | None = None
    reused: int = 0


def measure(
    restore: Callable[[Pair], Restored],
    suite: Suite,
    measures: Measures,
    results: Results,
    *,
    truncate: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Derain every picture of a suite that has no line yet, and measure it.

    Args:
        restore: Gives the picture without rain, uint8 or floats in [0, 1].
        suite: The pictures.
        measures: What to measure.
        results: Where the lines are, and go.
        truncate: Whether to score the results truncated to 8 bits also.
        progress: Called with (pictures done, pictures in all).

    Raises:
        UnrainError: A result has another size than its picture, or is too small to be measured.
    """
    for done, name in enumerate(suite.names, 1):
        if name not in results.rows:
            pair = suite.load(name)
            start = time.perf_counter()
            restored = restore(pair)
            seconds = time.perf_counter() - start
            if restored.shape != pair.clean.shape:
                sizes = [f"{side.shape[1]}x{side.shape[0]}" for side in (restored, pair.clean)]
                raise UnrainError(
                    f"{pair.name} of {suite.name}: the result is {sizes[0]}, the picture {sizes[1]}"
                )
            try:
                row = measures(pair, to_8_bit(restored))
            except ValueError as error:
                raise UnrainError(f"{pair.name} of {suite.name}: {error}") from error
            row["seconds"] = seconds
            if truncate:
                cut = fidelity(pair, to_8_bit(restored, truncate=True))
                row |= {f"{name}_truncated": value for name, value in cut.items()}
            results.add(name, row)
        if progress:
            progress(done, len(suite))


def summarise(
    suite: Suite, measures: Measures, results: Results, recursions: int | None, *, truncate: bool = False
) -> list[Summary]:
    """Average the lines of a suite.

    Returns:
        The score of the results rounded to 8 bits and, if wanted, that of the results truncated.
    """
    rows = [results.rows[name] for name in suite.names]
    means = measures.average(rows)

    def mean(name: str) -> float | None:
        value = means.get(name)
        return None if value is None else round(value, _DIGITS.get(name, 4))

    rounded = Summary(
        suite.name,
        len(suite),
        recursions,
        mean("psnr"),
        mean("ssim"),
        mean("seconds"),
        psnr_rgb=mean("psnr_rgb"),
        ssim_rgb=mean("ssim_rgb"),
        lpips=mean("lpips"),
        niqe=mean("niqe"),
        brisque=mean("brisque"),
        streaks_removed=mean("streaks_removed"),
        streak_pictures=None if (counted := means.get("streak_pictures")) is None else int(counted),
        change_away=mean("away"),
        chroma=mean("chroma"),
        reused=results.reused,
    )
    if not truncate or suite.kind == "real":
        return [rounded]
    cut = [None if (value := means[f"{name}_truncated"]) is None else value for name in ("psnr", "ssim")]
    return [
        rounded,
        Summary(
            suite.name,
            len(suite),
            recursions,
            None if cut[0] is None else round(cut[0], 3),
            None if cut[1] is None else round(cut[1], 4),
            mean("seconds"),
            truncated=True,
            reused=results.reused,
        ),
    ]


@dataclass(frozen=True)
class Measured:
    """One finished measurement: the scores with the pictures' own lines.

    Attributes:
        candidate: What was measured.
        suite: On what.
        scores: Of rounded and, if wanted, of truncated results.
        per_image: What was measured of each picture, by name.
        metrics: What was measured beside PSNR and SSIM on Y.
        versions: Which packages' files that was done with.
    """

    candidate: Candidate
    suite: Suite
    scores: list[Summary]
    per_image: dict[str, Values]
    metrics: tuple[str, ...]
    versions: dict[str, str]


def run(
    candidates: list[Candidate],
    suites: list[tuple[Path, str, bool]],
    *,
    metrics: tuple[str, ...] = (),
    recursions: tuple[int, ...] = (),
    processor: Processor = CPU,
    truncate: bool = False,
    card: bool = False,
    inputs: bool = False,
    folder: Path | None = None,
    fresh: bool = False,
    note: Callable[[str], None] = lambda _: None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Iterator[Measured]:
    """Measure candidates on suites by whatever is asked for, giving each as soon as it is known.

    Args:
        candidates: What to measure.
        suites: For each the folder it is in, its name, and whether it is real rain.
        metrics: What to measure beside PSNR and SSIM on Y, see `open_measures`.
        recursions: Numbers of recursions to measure; the model's own when empty.
        processor: What runs it, see `open_derainer`.
        truncate: Whether to score results truncated to 8 bits also, beside those rounded.
        card: Whether the scores (of rounded results) are also written into the models' cards.
        inputs: Whether the rainy pictures themselves are measured, too, before the candidates.
        folder: Where results are kept for the next run; None keeps nothing.
        fresh: Whether to measure again what is kept there.
        note: Called with a line about what is left out.
        progress: Called with (candidate and suite, pictures done, pictures in all).

    Raises:
        UnrainError: A candidate or suite is missing or broken, a suite is another version than its name says,
            or a candidate has no card to write into.
    """
    for candidate in candidates if card else ():
        if not isinstance(candidate.source, Model):
            raise UnrainError(f"{candidate.name}: only exported models have a card; leave --card out")
    commit = _commit() if card else ""
    for root, name, real in suites:
        suite = open_suite(root, name, real=real)
        measures, missing = open_measures(metrics, suite.kind)
        for line in missing:
            note(f"{suite.name}: {line}")
        cut = truncate and suite.kind != "real"
        measured = [INPUT, *candidates] if inputs and suite.kind != "clean" else candidates
        if measured is candidates:
            _check_input(suite, folder)
        for candidate in measured:
            for restore, count in restorers(candidate, suite.name, recursions, processor, as_float=cut):
                label = f"{candidate.name} T={count or '-'} on {suite.name}"
                report = (lambda done, total, label=label: progress(label, done, total)) if progress else None
                about = {
                    "candidate": candidate.name,
                    "identity": identity(candidate),
                    "suite": suite.name,
                    "kind": suite.kind,
                    "files": suite.fingerprint,
                    "recursions": count,
                    "processor": asdict(processor),
                    "truncate": cut,
                    "metrics": measures.wanted,
                    "versions": measures.versions,
                    "code": fingerprint(),
                }
                results = open_results(folder, about, fresh=fresh)
                measure(restore, suite, measures, results, truncate=cut, progress=report)
                scores = summarise(suite, measures, results, count, truncate=cut)
                if candidate is INPUT and scores[0].psnr is not None:
                    suite.check_input(scores[0].psnr)
                if card and isinstance(candidate.source, Model) and suite.kind != "real":
                    _note(candidate.source, scores[0], commit)
                yield Measured(candidate, suite, scores, results.rows, measures.wanted, measures.versions)


def _check_input(suite: Suite, folder: Path | None) -> None:
    """Compare the rainy pictures' own PSNR with what is known of the set, if something is."""
    if suite.published is None or suite.published.input_psnr is None:
        return
    about = {"candidate": INPUT.name, "suite": suite.name, "files": suite.fingerprint, "code": fingerprint()}
    results = open_results(folder, about)
    measures = Measures(suite.kind, ())
    measure(lambda pair: pair.rainy, suite, measures, results)
    suite.check_input(float(np.mean([row["psnr"] for row in results.rows.values()])))


def restorers(
    candidate: Candidate,
    suite: str,
    recursions: tuple[int, ...] = (),
    processor: Processor = CPU,
    *,
    as_float: bool = False,
) -> Iterator[tuple[Callable[[Pair], Restored], int | None]]:
    """Give what derains a pair and its number of recursions, for every number of recursions asked for.

    Args:
        candidate: A model, a folder of results, or the rainy pictures themselves.
        suite: The suite's name.
        recursions: Numbers of recursions; the model's own when empty.
        processor: What runs it, see `open_derainer`.
        as_float: Whether results are floats in [0, 1], not rounded to 8 bits.
    """
    if candidate.source is None:
        yield lambda pair: pair.rainy, None
        return
    if isinstance(candidate.source, Path):
        look_up = find_results(candidate.source, suite)
        yield lambda pair: look_up(pair.name), None
        return
    for wanted in recursions or (None,):
        derainer, count = open_derainer(candidate.source, wanted, processor)

        def restore(pair: Pair, derainer: Derainer = derainer) -> Restored:
            # The very values that the Derainer makes of 8 bits: rounding them here is its own rounding.
            return derainer(pair.rainy.astype(np.float32) / np.float32(255) if as_float else pair.rainy)

        yield restore, count


def _note(model: Model, found: Summary, commit: str) -> None:
    """Write a score into the model's card, with the commit that it was measured at."""
    path = model.path.with_suffix(".json")
    card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    entry = {name: value for name in _IN_CARD if (value := asdict(found)[name]) is not None}
    scores = card.setdefault("scores", {})
    scores[f"{found.suite} T{found.recursions}"] = entry
    card["scores_by"] = _command(model.name, scores)
    card["scores_commit"] = commit
    files.write((json.dumps(card, indent=2, ensure_ascii=False) + "\n").encode(), path)


def _command(name: str, scores: Collection[str]) -> str:
    """Return the command that measures what a card lists."""
    suites, recursions = (
        list(dict.fromkeys(part)) for part in zip(*(key.rsplit(" T", 1) for key in scores), strict=True)
    )
    options = [f"--suite {suite}" for suite in suites if set(suites) != set(SUITES)]
    options += [f"--recursions {one}" for one in sorted(recursions) if len(recursions) > 1]
    return " ".join([f"unrain bench {name} --data DATA", *options, "--card"])


def _commit() -> str:
    """Return the commit that code and weights are at; empty outside a checkout.

    The cards do not count: they are what is being written.

    Raises:
        UnrainError: Other files of the package differ from it, so that it is not what is measured.
    """
    package = Path(__file__).parents[2]
    commands = (
        ["git", "describe", "--always", "--exclude=*"],
        ["git", "status", "--porcelain", "--", ".", ":(exclude)weights/*.json"],
    )
    try:
        commit, changed = (
            subprocess.run(one, cwd=package, capture_output=True, text=True, check=True).stdout.strip()
            for one in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    if changed:
        raise UnrainError(f"{package}: differs from commit {commit}, so no card can name it: commit first")
    return commit
