"""Object detection as a measure: what a detector still finds in a picture, by COCO's average precision.

"Microsoft COCO: Common Objects in Context". Tsung-Yi Lin et al. ECCV 2014. https://arxiv.org/abs/1405.0312
The engine is COCO's own evaluation, pycocotools. The detector is a file of the user's: a YOLO in ONNX, or
Darknet's description and weights, which OpenCV reads. Boxes count from a score of 0.001 on; of two of a
class that overlap by more than 0.65 the better one stays, and at most 300 of a picture.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from unrain.engine.network import first_line
from unrain.errors import UnrainError
from unrain.lab.bench.downstream.onnx_network import Network, shown
from unrain.lab.data.rain import RGB8

CLASSES = 80
LOWEST_SCORE = 0.001
LARGEST_OVERLAP = 0.65
MOST_BOXES = 300

_USUAL_SIDE = 640
_SIDES = ("width", "height")
_GREY = 114
# Darknet leaves weak boxes out when it reads the network, unless its description says otherwise.
_HEAD = re.compile(r"^[ \t]*\[yolo\][^\n]*$", re.MULTILINE)

# N x 6: left, top, width and height in pixels, score, class.
Boxes = NDArray[np.float64]
Detector = Callable[[RGB8], Boxes]


def open_detector(text: str, threads: int = 0) -> Detector:
    """Make a detector ready to run.

    Args:
        text: FILE.onnx, or FILE.cfg+FILE.weights.
        threads: CPU threads, 0 for all.

    Raises:
        UnrainError: It is no such file, or no detector of COCO's 80 classes.
    """
    paths = files(text)
    for path in paths:
        if not path.is_file():
            raise UnrainError(f"{path}: no such file, give a detector as FILE.onnx or FILE.cfg+FILE.weights")
    if len(paths) == 2:
        return _Darknet(paths[0], paths[1], threads)
    if paths[0].suffix.lower() != ".onnx":
        raise UnrainError(f"{text}: give a detector as FILE.onnx or FILE.cfg+FILE.weights")
    return _Yolo(paths[0], threads)


def files(text: str) -> list[Path]:
    """Return the file that a detector is in, or both."""
    description, plus, weights = text.partition("+")
    pair = plus and Path(description).suffix.lower() == ".cfg"
    return [Path(description), Path(weights)] if pair else [Path(text)]


class _Yolo:
    """A YOLO in ONNX.

    Input 1 x 3 x H x W, RGB in [0, 1]: the picture reduced or enlarged as a whole, grey around it. Output
    1 x 84 x N or 1 x N x 84 (centre, width and height in pixels of the input, 80 scores), or 1 x N x 85 with
    the score of there being anything before the others, as YOLOv5 and YOLOv7 have it.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self._network = Network(path, threads)
        shape = self._network.shape
        if len(shape) != 4 or shape[1] != 3 or self._network.dtype != np.float32:
            raise UnrainError(
                f"{path}: its input is not float32 1 x 3 x H x W but {shown(shape)}; give a YOLO's ONNX file"
            )
        height, width = (side if isinstance(side, int) else _USUAL_SIDE for side in shape[2:])
        self._size = (width, height)

    def __call__(self, picture: RGB8) -> Boxes:
        canvas, scale, (left, top) = letterbox(picture, self._size)
        planes = np.ascontiguousarray(canvas.transpose(2, 0, 1)[None], np.float32) / np.float32(255)
        rows = self._rows(self._network(planes))
        scores = rows[:, 4:] if rows.shape[1] == 4 + CLASSES else rows[:, 4:5] * rows[:, 5:]
        boxes = (rows[:, :4] - [left, top, 0, 0]) / scale
        return strongest(boxes, scores, (picture.shape[1], picture.shape[0]))

    def _rows(self, output: NDArray[Any]) -> NDArray[Any]:
        """Return one row for each box, of 84 or 85 numbers."""
        if output.ndim == 3 and output.shape[0] == 1 and output.dtype == np.float32:
            if output.shape[2] in (4 + CLASSES, 5 + CLASSES):
                return np.asarray(output[0])
            if output.shape[1] == 4 + CLASSES:
                return np.asarray(output[0].T)
        raise UnrainError(
            f"{self._network.path}: gives {output.dtype} {shown(output.shape)} instead of float32 "
            f"1 x {4 + CLASSES} x N or 1 x N x {5 + CLASSES}; give a YOLO of COCO's {CLASSES} classes, "
            "exported without suppression"
        )


class _Darknet:
    """A YOLO of Darknet, read by OpenCV; the picture is stretched to its input, as Darknet does.

    Raises:
        ModuleNotFoundError: There is no OpenCV.
    """

    def __init__(self, description: Path, weights: Path, threads: int) -> None:
        import cv2

        text = description.read_text(encoding="utf-8", errors="replace")
        text = _HEAD.sub(f"[yolo]\nthresh={LOWEST_SCORE}", text)
        sides = [re.search(rf"^[ \t]*{side}[ \t]*=[ \t]*(\d+)", text, re.MULTILINE) for side in _SIDES]
        if not hasattr(cv2.dnn, "readNetFromDarknet"):
            raise UnrainError(
                f"OpenCV {cv2.__version__}: reads no Darknet files any more, install "
                "'opencv-python-headless<5'"
            )
        try:
            self._net = cv2.dnn.readNetFromDarknet(
                np.frombuffer(text.encode(), np.uint8), np.frombuffer(weights.read_bytes(), np.uint8)
            )
            self._outputs = self._net.getUnconnectedOutLayersNames()
        except cv2.error as error:
            raise UnrainError(
                f"{description}: not a network that OpenCV can read with {weights.name} "
                f"({first_line(error)}); give the files that belong together"
            ) from error
        if None in sides:
            raise UnrainError(f"{description}: says no width and height of its input; mend it")
        self._size = tuple(int(side[1]) for side in sides if side)
        self._path = description
        if threads:
            cv2.setNumThreads(threads)

    def __call__(self, picture: RGB8) -> Boxes:
        import cv2

        size = (picture.shape[1], picture.shape[0])
        self._net.setInput(cv2.dnn.blobFromImage(picture, 1 / 255, self._size))
        outputs = [np.asarray(output) for output in self._net.forward(self._outputs)]
        for output in outputs:
            if output.ndim != 2 or output.shape[1] != 5 + CLASSES:
                raise UnrainError(
                    f"{self._path}: gives {shown(output.shape)} instead of N x {5 + CLASSES}; "
                    f"give a YOLO of COCO's {CLASSES} classes"
                )
        rows = np.concatenate(outputs)
        # OpenCV gives shares of the picture, and scores that are multiplied already.
        return strongest(rows[:, :4] * [*size, *size], rows[:, 5:], size)


def letterbox(picture: RGB8, size: tuple[int, int]) -> tuple[RGB8, float, tuple[int, int]]:
    """Fit a picture into a network's input, with grey where it does not reach.

    Args:
        picture: H x W x 3 uint8.
        size: Width and height of the input.

    Returns:
        The input, height x width x 3 uint8; by what the picture was multiplied; and its left upper corner.
    """
    height, width = picture.shape[:2]
    scale = min(size[0] / width, size[1] / height)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    left, top = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    canvas = np.full((size[1], size[0], 3), _GREY, np.uint8)
    fitted = Image.fromarray(picture)
    if inner != fitted.size:
        fitted = fitted.resize(inner, Image.Resampling.BILINEAR)
    canvas[top : top + inner[1], left : left + inner[0]] = np.asarray(fitted)
    return canvas, scale, (left, top)


def strongest(boxes: NDArray[Any], scores: NDArray[Any], size: tuple[int, int]) -> Boxes:
    """Keep the best boxes: of a class, those that no better one overlaps much.

    Args:
        boxes: N x 4, centre, width and height in pixels.
        scores: N x 80, in [0, 1].
        size: Width and height of the picture, to which boxes are cut.

    Returns:
        Best first. A box that several classes claim is there several times, as usual for COCO.
    """
    centred = np.asarray(boxes, np.float32)[None]
    by_class = np.ascontiguousarray(np.asarray(scores, np.float32).T[None])
    (chosen,) = _suppressor().run(None, {"boxes": centred, "scores": by_class})
    kinds, places = np.asarray(chosen)[:, 1], np.asarray(chosen)[:, 2]
    best = by_class[0, kinds, places]
    order = np.argsort(-best, kind="stable")[:MOST_BOXES]
    kept = np.asarray(boxes, np.float64)[places[order]]
    corners = np.concatenate((kept[:, :2] - kept[:, 2:] / 2, kept[:, :2] + kept[:, 2:] / 2), axis=1)
    corners = np.clip(corners, 0, [*size, *size])
    return np.column_stack((corners[:, :2], corners[:, 2:] - corners[:, :2], best[order], kinds[order]))


@lru_cache
def _suppressor() -> ort.InferenceSession:
    """Return ONNX's own suppression, class by class, as a network of one node."""
    limits = {"most": np.int64(MOST_BOXES), "overlap": np.float32(LARGEST_OVERLAP)}
    limits["lowest"] = np.float32(LOWEST_SCORE)
    node = helper.make_node("NonMaxSuppression", ["boxes", "scores", *limits], ["chosen"], center_point_box=1)
    graph = helper.make_graph(
        [node],
        "suppression",
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, "n", 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, "classes", "n"]),
        ],
        [helper.make_tensor_value_info("chosen", TensorProto.INT64, ["m", 3])],
        [onnx.numpy_helper.from_array(np.array([value]), name) for name, value in limits.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def read_boxes(path: Path, size: tuple[int, int]) -> Boxes:
    """Read the true boxes of a picture: lines of class, centre, width and height as shares of the picture.

    Args:
        path: A text file in YOLO's format; an empty one for a picture without objects.
        size: Width and height of the picture.

    Returns:
        Boxes with a score of 1.

    Raises:
        UnrainError: The file is something else.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            kind, x, y, width, height = map(float, line.split())
        except ValueError:
            kind = -1
        if kind not in range(CLASSES):
            raise UnrainError(
                f"{path}: line {number} is not a class below {CLASSES}, centre, width and height; mend it"
            )
        rows.append((x - width / 2, y - height / 2, width, height, 1.0, kind))
    return np.array(rows, np.float64).reshape(-1, 6) * [*size, *size, 1, 1]


def average_precision(truth: Mapping[str, Boxes], found: Mapping[str, Boxes]) -> tuple[float, float]:
    """Return COCO's mAP50-95 and mAP50 in per cent, over the classes that occur.

    Args:
        truth: The true boxes of each picture, by name; scores do not matter.
        found: What was found in the same pictures.

    Raises:
        ValueError: There is not one true box.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _evaluated(truth, found)
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * float(evaluation.stats[0]), 100 * float(evaluation.stats[1])


def resampled_precision(
    truth: Mapping[str, Boxes], found: Mapping[str, Boxes], draws: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Return COCO's mAP50-95 in per cent for sets drawn from the pictures, for bootstrap intervals.

    Args:
        truth: The true boxes of each picture, by name.
        found: What was found in the same pictures.
        draws: A row for each set: places of pictures in the order of `truth`; one may be there several times.

    Returns:
        A value for each set; NaN for one without a true box.

    Raises:
        ValueError: There is not one true box.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _evaluated(truth, found, all_sizes_only=True)
        of_class = np.array(evaluation.evalImgs, object).reshape(-1, len(truth))
        values = []
        for draw in draws:
            evaluation.evalImgs = of_class[:, draw].ravel().tolist()
            evaluation.accumulate()
            precision = evaluation.eval["precision"]
            occurs = precision > -1
            values.append(100 * float(precision[occurs].mean()) if occurs.any() else math.nan)
    return np.array(values)


def _evaluated(
    truth: Mapping[str, Boxes], found: Mapping[str, Boxes], *, all_sizes_only: bool = False
) -> COCOeval:
    """Match boxes picture by picture. pycocotools prints what it does: the caller keeps it quiet."""
    if not any(len(boxes) for boxes in truth.values()):
        raise ValueError("not one true box")
    evaluation = COCOeval(_coco(truth, truth), _coco(truth, found), "bbox")
    if all_sizes_only:
        limits = evaluation.params
        limits.areaRng, limits.areaRngLbl, limits.maxDets = limits.areaRng[:1], ["all"], limits.maxDets[-1:]
    evaluation.evaluate()
    return evaluation


def _coco(names: Mapping[str, Boxes], boxes: Mapping[str, Boxes]) -> COCO:
    """Return boxes as pycocotools has them. Numbers begin at 1: to it a box of number 0 is none."""
    rows = [(number, row) for number, name in enumerate(names, 1) for row in boxes[name].tolist()]
    index = COCO()
    index.dataset = {
        "images": [{"id": number} for number, _ in enumerate(names, 1)],
        "categories": [{"id": kind} for kind in range(CLASSES)],
        "annotations": [
            {
                "id": place,
                "image_id": number,
                "category_id": int(row[5]),
                "bbox": row[:4],
                "area": row[2] * row[3],
                "iscrowd": 0,
                "score": row[4],
            }
            for place, (number, row) in enumerate(rows, 1)
        ],
    }
    index.createIndex()
    return index
