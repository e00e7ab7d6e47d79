"""`unrain bench tasks`: what deraining does for those who look at the pictures next.

A detector and a segmentation network, files of the user's, look at photographs whose objects are known: as
they are, with rain of three strengths, and each of these derained. The rain is drawn by RainMaker from the
picture's name and a seed, so that every candidate sees the same drops, in this run and in the next.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unrain.cli.derain import AUTO
from unrain.cli.output import check_form
from unrain.errors import UnrainError, UsageError
from unrain.image import size_of
from unrain.lab.bench.cache import FOLDER, Results, fingerprint, identity, open_results
from unrain.lab.bench.candidates import Candidate, to_8_bit
from unrain.lab.bench.downstream import detection, onnx_network, segmentation
from unrain.lab.bench.options import TaskOptions
from unrain.lab.bench.report import tables
from unrain.lab.bench.run import INPUT, restorers
from unrain.lab.data.pairs import Pair, pictures, read
from unrain.lab.data.rain import RGB8, RainMaker, StreakRain
from unrain.lab.metrics import psnr_ssim
from unrain.lab.metrics.measures import finite
from unrain.score import DETECTOR, Scorer

# The one place that says how strong each rain is. The three leave a picture about as near to the clean one as
# the rain of Rain100L, Rain800 and Rain100H does.
RAINS: dict[str, RainMaker | None] = {
    "none": None,
    "light": RainMaker(from_scratch=StreakRain(depths=(1, 1), density=(0.002, 0.005), intensity=(50, 100))),
    "middling": RainMaker(
        from_scratch=StreakRain(depths=(2, 2), density=(0.003, 0.006), intensity=(80, 130))
    ),
    "heavy": RainMaker(from_scratch=StreakRain(depths=(3, 3), density=(0.006, 0.012), intensity=(110, 170))),
}

# Sets of pictures for an interval.
DRAWS = 200

# What a value depends on beside what `results.code` looks at.
_LIBRARIES = ("opencv-python-headless", "ai-edge-litert")


@dataclass(frozen=True)
class Scenes:
    """Photographs with labelled objects.

    Attributes:
        name: What the set is called on the command line and in tables.
        files: The photographs, by name.
        boxes: Of each the file of its boxes; None where the set has none.
        masks: Of each the file of its mask; None where the set has none.
        kind: Of the masks, see `segmentation.MASKS`.
    """

    name: str
    files: dict[str, Path]
    boxes: dict[str, Path] | None
    masks: dict[str, Path] | None
    kind: str


def open_scenes(data: Path, name: str) -> Scenes:
    """Find the parts of a set: `images`, and `boxes` or masks in `semantic` or `labels`, matched by name.

    Args:
        data: The folder that the set is in.
        name: The set's folder below it.

    Raises:
        UnrainError: A part is missing, or something in it.
    """
    folder = data / name
    found = pictures(folder / "images")
    files = {path.stem: path for path in found}
    if len(files) < len(found):
        twice = next(path for path in found if files[path.stem] != path)
        raise UnrainError(f"{twice}: another picture has that name, remove one")

    def partners(part: str, suffix: str) -> dict[str, Path] | None:
        if not (folder / part).is_dir():
            return None
        beside = {one: folder / part / f"{one}{suffix}" for one in files}
        lost = [path for path in beside.values() if not path.is_file()]
        if lost:
            raise UnrainError(f"{lost[0]}: no such file ({len(lost)} missing); every picture needs one")
        return beside

    kind = next((kind for kind in segmentation.MASKS if (folder / kind).is_dir()), "")
    masks = partners(kind, ".png") if kind else None
    return Scenes(name, files, partners("boxes", ".txt"), masks, kind)


def bench_tasks(
    candidates: Sequence[Candidate],
    data: Path,
    options: TaskOptions,
    *,
    say: Callable[[str], None],
    note: Callable[[str], None],
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Measure, and print the table.

    Args:
        candidates: What derains.
        data: The folder that the set is in.
        options: The rest.
        say: Called with each line of the result.
        note: Called with each line about it.
        progress: Called with (candidate and rain, pictures done, pictures in all).

    Raises:
        UnrainError: Something is missing or broken.
    """
    check_form(csv=options.csv, json=options.json)
    if not (options.detect or options.segment):
        raise UsageError(
            "bench tasks: give a detector with --detect FILE, or a segmentation network with --segment FILE"
        )
    scenes = open_scenes(data, options.suite)
    tasks: list[Task] = [
        *(Detection(text, scenes, options.threads) for text in options.detect),
        *(Segmentation(path, scenes, options.threads) for path in options.segment),
    ]
    names = max(14, *(len(candidate.name) for candidate in candidates))
    networks = max(len(task.by) for task in tasks)
    if not (options.csv or options.json):
        say(head(names, networks))
    scores = []
    for score in measure_tasks(candidates, scenes, tasks, options, folder=FOLDER, progress=progress):
        scores.append(score)
        if not (options.csv or options.json):
            say(line(score, names, networks))
    if options.csv or options.json:
        rows = [asdict(score) for score in scores]
        columns = [field.name for field in fields(TaskScore)]
        for row in tables.as_csv(rows, columns) if options.csv else tables.as_json(rows):
            say(row)
    reused = sum(score.reused for score in scores)
    if reused:
        total = sum(score.pictures for score in scores)
        note(
            f"{reused} of {total} values are from an earlier run with the same files, code and libraries "
            f"({FOLDER}); --fresh measures again"
        )


# A row for each set: places of pictures, one may be there several times.
Draws = NDArray[np.intp]


class Task(Protocol):
    """Something that is done with a picture.

    Attributes:
        title: What it is: detection or segmentation.
        by: The name of the network's file.
        about: Everything that its results depend on beside the pictures.
    """

    title: str
    by: str
    about: dict[str, Any]

    def predict(self, name: str, picture: RGB8) -> dict[str, Any]:
        """Let the network look at a picture, and return what can be kept as JSON."""

    def score(self, rows: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        """Return what the results of all pictures, by name, are worth: fields of `TaskScore`."""

    def resampled(self, rows: Mapping[str, dict[str, Any]], draws: Draws) -> NDArray[np.float64]:
        """Return mAP50-95 or mIoU, in per cent, of each set drawn; NaN where there is none."""


class Detection:
    """Boxes around objects, scored by COCO's average precision; see `Task` for the attributes."""

    title = "detection"

    def __init__(self, text: str, scenes: Scenes, threads: int = 0) -> None:
        """Open a detector, and read the true boxes.

        Args:
            text: Its file or files, see `detection.open_detector`.
            scenes: The pictures.
            threads: CPU threads, 0 for all.

        Raises:
            UnrainError: The file is no detector, or the set has no boxes.
        """
        self._detect = detection.open_detector(text, threads)
        if scenes.boxes is None:
            raise UnrainError(
                f"{scenes.name}: has no folder boxes, which --detect needs; choose another --suite"
            )
        self._truth = {
            name: detection.read_boxes(path, size_of(scenes.files[name]))
            for name, path in scenes.boxes.items()
        }
        if not any(map(len, self._truth.values())):
            raise UnrainError(f"{scenes.name}: has not one box in its folder boxes; choose another --suite")
        paths = detection.files(text)
        self.by = paths[0].name
        self.about = {
            "network": onnx_network.identity(paths),
            "truth": onnx_network.identity([*scenes.boxes.values()]),
        }

    def predict(self, name: str, picture: RGB8) -> dict[str, Any]:
        """Return the boxes found, rounded to hundredths of a pixel, scores to five digits."""
        return {
            "boxes": [
                [round(value, 5 if i == 4 else 2) for i, value in enumerate(row)]
                for row in self._detect(picture).tolist()
            ]
        }

    def score(self, rows: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        """Return the average precision, and of how many classes."""
        precision, at_half = detection.average_precision(self._truth, _boxes(rows))
        classes = len({int(kind) for boxes in self._truth.values() for kind in boxes[:, 5]})
        return {"map": round(precision, 2), "map50": round(at_half, 2), "classes": classes}

    def resampled(self, rows: Mapping[str, dict[str, Any]], draws: Draws) -> NDArray[np.float64]:
        """Return the average precision of each set drawn."""
        return detection.resampled_precision(self._truth, _boxes(rows), draws)


def _boxes(rows: Mapping[str, dict[str, Any]]) -> dict[str, detection.Boxes]:
    return {name: np.array(row["boxes"], np.float64).reshape(-1, 6) for name, row in rows.items()}


class Segmentation:
    """A class for each pixel, scored by the mean IoU of the whole set; see `Task` for the attributes."""

    title = "segmentation"

    def __init__(self, path: Path, scenes: Scenes, threads: int = 0) -> None:
        """Open a segmentation network.

        Args:
            path: Its file, see `segmentation.open_segmenter`.
            scenes: The pictures.
            threads: CPU threads, 0 for all.

        Raises:
            UnrainError: The file is no such network, or the set has no masks.
        """
        self._segment = segmentation.open_segmenter(path, threads)
        if scenes.masks is None:
            raise UnrainError(
                f"{scenes.name}: has no folder {' or '.join(segmentation.MASKS)}, which --segment needs; "
                "choose another --suite"
            )
        self._masks, self._kind = scenes.masks, scenes.kind
        self.by = path.name
        self.about = {
            "network": onnx_network.identity([path]),
            "truth": onnx_network.identity([*scenes.masks.values()]),
        }

    def predict(self, name: str, picture: RGB8) -> dict[str, Any]:
        """Return how many pixels of which class were taken for which: rows of true class, other, count."""
        truth = segmentation.read_mask(self._masks[name], self._kind)
        if truth.shape != picture.shape[:2]:
            raise UnrainError(
                f"{self._masks[name]}: {onnx_network.shown(truth.shape[::-1])}, its picture "
                f"{onnx_network.shown(picture.shape[1::-1])}; they must have one size"
            )
        table = segmentation.confusion(truth, self._segment(picture))
        return {"counts": [[int(i), int(j), int(table[i, j])] for i, j in np.argwhere(table)]}

    def score(self, rows: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        """Return the mean IoU, and of how many classes."""
        try:
            iou, classes = segmentation.mean_iou(_counts(rows).sum(0))
        except ValueError as error:
            raise UnrainError(f"{self._kind}: {error} in these masks; choose another --suite") from error
        return {"miou": round(iou, 2), "classes": classes}

    def resampled(self, rows: Mapping[str, dict[str, Any]], draws: Draws) -> NDArray[np.float64]:
        """Return the mean IoU of each set drawn."""
        counts, values = _counts(rows), []
        for draw in draws:
            try:
                values.append(segmentation.mean_iou(counts[draw].sum(0))[0])
            except ValueError:
                values.append(math.nan)
        return np.array(values)


def _counts(rows: Mapping[str, dict[str, Any]]) -> NDArray[np.int64]:
    """Return the table of each picture: how many pixels of which class were taken for which."""
    tables = np.zeros((len(rows), *(len(segmentation.VOC),) * 2), np.int64)
    for table, row in zip(tables, rows.values(), strict=True):
        for i, j, count in row["counts"]:
            table[i, j] = count
    return tables


@dataclass(frozen=True)
class TaskScore:
    """What a network makes of the pictures of a candidate.

    Attributes:
        model: The candidate; "input" for the pictures as they are.
        recursions: Its recursions T; None for "input".
        suite: Name of the set.
        rain: Out of RAINS.
        pictures: How many there are.
        psnr: Mean Y-channel PSNR against the clean pictures, in dB; None for these themselves.
        task: "detection" or "segmentation".
        by: The network's file.
        map: COCO's mAP50-95 in per cent.
        map50: The same at an overlap of a half only.
        miou: Mean IoU in per cent.
        low: From here to `high` is the change of mAP50-95 or mIoU that deraining makes, in points, with 95 %
            confidence: `DRAWS` sets of as many pictures are drawn from these (paired bootstrap). None for
            "input".
        high: See `low`.
        classes: How many classes the truth has, of which the values are the means.
        left: How many pictures the candidate left as they are, for want of rain (`TaskOptions.only_rainy`).
        reused: How many pictures an earlier run had measured already.
    """

    model: str
    recursions: int | None
    suite: str
    rain: str
    pictures: int
    psnr: float | None
    task: str
    by: str
    map: float | None = None
    map50: float | None = None
    miou: float | None = None
    low: float | None = None
    high: float | None = None
    classes: int = 0
    left: int = 0
    reused: int = 0


def add_rain(clean: RGB8, name: str, rain: str, seed: int = 0) -> RGB8:
    """Return a picture in the rain.

    Args:
        clean: H x W x 3 uint8.
        name: The picture's, which decides where the drops are, together with
        rain: the strength, out of RAINS, and
        seed: a number, 0 or more.
    """
    maker = RAINS[rain]
    if maker is None:
        return clean
    number = (seed, list(RAINS).index(rain), zlib.crc32(name.encode()))
    return maker(clean, [], np.random.default_rng(number))


def measure_tasks(
    candidates: Sequence[Candidate],
    scenes: Scenes,
    tasks: Sequence[Task],
    options: TaskOptions,
    *,
    folder: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Iterator[TaskScore]:
    """Let networks look at pictures before and after deraining, giving each score as soon as it is known.

    Args:
        candidates: What derains; the pictures as they are come before them.
        scenes: The photographs.
        tasks: What is done with them.
        options: Which rain, how many recursions, and so on.
        folder: Where results are kept for the next run; None keeps nothing.
        progress: Called with (candidate and rain, pictures done, pictures in all).

    Raises:
        UnrainError: There is no such rain, a candidate is a folder of pictures, or something is broken.
    """
    rains = options.rain or tuple(RAINS)
    for rain in rains:
        if rain not in RAINS:
            raise UsageError(f"{rain}: no such rain, choose among {', '.join(RAINS)}")
    for candidate in candidates:
        if isinstance(candidate.source, Path):
            raise UnrainError(f"{candidate.name}: these pictures were derained from other rain; give a model")
    pictures_print = onnx_network.identity([*scenes.files.values()])
    present = {one.name: one.version for one in metadata.distributions() if one.name in _LIBRARIES}
    scorer, detector = None, None
    if options.only_rainy is not None:
        threshold = None if options.only_rainy == AUTO else options.only_rainy
        scorer = Scorer(threshold=threshold, processor=options.processor)
        detector = f"{onnx_network.identity([DETECTOR])} {scorer.threshold}"
    draws = np.random.default_rng(0).integers(0, len(scenes.files), (DRAWS, len(scenes.files)))
    for rain in rains:
        as_it_is: list[NDArray[np.float64]] = []
        for candidate in [INPUT, *candidates]:
            looked = None if candidate is INPUT else scorer
            for restore, count in restorers(candidate, rain, options.recursions, options.processor):
                kept = [
                    open_results(
                        folder,
                        {
                            "candidate": candidate.name,
                            "identity": identity(candidate),
                            "suite": scenes.name,
                            "files": pictures_print,
                            "recursions": count,
                            "processor": asdict(options.processor),
                            "rain": rain,
                            "seed": options.seed,
                            "only rainy": detector if looked else None,
                            "task": task.title,
                            "by": task.by,
                            **task.about,
                            "code": fingerprint(__name__),
                            "libraries": present,
                        },
                        fresh=options.fresh,
                    )
                    for task in tasks
                ]
                label = f"{candidate.name} T={count or '-'} in rain: {rain}"
                for done, name in enumerate(scenes.files, 1):
                    _look(name, rain, options.seed, scenes, restore, looked, tasks, kept)
                    if progress:
                        progress(label, done, len(scenes.files))
                for place, (task, results) in enumerate(zip(tasks, kept, strict=True)):
                    rows = {name: results.rows[name] for name in scenes.files}
                    unchanged = candidate is INPUT and RAINS[rain] is None
                    psnr = (
                        None
                        if unchanged
                        else round(float(np.mean([row["psnr"] for row in rows.values()])), 2)
                    )
                    resampled = task.resampled(rows, draws)
                    low = high = None
                    if candidate is INPUT:
                        as_it_is.append(resampled)
                    else:
                        low, high = _interval(resampled - as_it_is[place])
                    yield TaskScore(
                        candidate.name,
                        count,
                        scenes.name,
                        rain,
                        len(rows),
                        psnr,
                        task.title,
                        task.by,
                        **task.score(rows),
                        low=low,
                        high=high,
                        left=sum(row["left"] for row in rows.values()),
                        reused=results.reused,
                    )


def _interval(changes: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Return the middle 95 per cent of what deraining changed in each set drawn."""
    known = changes[np.isfinite(changes)]
    if not len(known):
        return None, None
    low, high = np.percentile(known, (2.5, 97.5)).tolist()
    return round(low, 2), round(high, 2)


def _look(
    name: str,
    rain: str,
    seed: int,
    scenes: Scenes,
    restore: Callable[[Pair], NDArray[np.uint8] | NDArray[np.float32]],
    scorer: Scorer | None,
    tasks: Sequence[Task],
    kept: Sequence[Results],
) -> None:
    """Do with one picture what has not been done yet; it is derained once for all tasks."""
    missing = [(task, results) for task, results in zip(tasks, kept, strict=True) if name not in results.rows]
    if not missing:
        return
    clean = read(scenes.files[name])
    rainy = add_rain(clean, name, rain, seed)
    left = scorer is not None and scorer(rainy).verdict == "clear"
    derained = rainy if left else to_8_bit(restore(Pair(name, rainy, clean)))
    psnr = finite(psnr_ssim.psnr(derained, clean))
    for task, results in missing:
        results.add(name, {"psnr": psnr, "left": left, **task.predict(name, derained)})


def head(names: int, networks: int) -> str:
    """Return the table's first line; names of models and of networks' files get this many characters."""
    return (
        f"{'rain':9} {'model':{names}} {'T':>2} {'PSNR':>6}  {'network':{networks}} {'mAP50-95':>8} "
        f"{'mAP50':>6} {'mIoU':>6} {'change, 95 %':>16} {'classes':>7}"
    )


def line(score: TaskScore, names: int, networks: int) -> str:
    """Return a score as a line of the table."""

    def cell(value: float | None, width: int) -> str:
        return f"{'-':>{width}}" if value is None else f"{value:{width}.2f}"

    left = f" {score.left} left alone" if score.left else ""
    reused = f" {score.reused} reused" if score.reused else ""
    change = "-" if score.low is None else f"{score.low:+.2f} to {score.high:+.2f}"
    return (
        f"{score.rain:9} {score.model:{names}} {score.recursions or '-':>2} {cell(score.psnr, 6)}  "
        f"{score.by:{networks}} {cell(score.map, 8)} {cell(score.map50, 6)} {cell(score.miou, 6)} "
        f"{change:>16} {score.classes:7}{left}{reused}"
    )
