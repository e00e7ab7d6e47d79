"""Semantic segmentation as a measure: how well a network still names each pixel, by the mean IoU.

The network is a file of the user's that knows the 20 classes of PASCAL VOC and the background, for example
DeepLabV3 ("Rethinking Atrous Convolution for Semantic Image Segmentation". Liang-Chieh Chen et al. 2017.
https://arxiv.org/abs/1706.05587). The truth is COCO's panoptic masks or CamVid's labels, mapped to VOC.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unrain.engine.network import first_line
from unrain.errors import UnrainError
from unrain.lab.bench.downstream.onnx_network import Network, shown
from unrain.lab.data.rain import RGB8

VOC = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
# Pixels without a label, or without one label of VOC, count for nothing.
VOID = 255
# COCO's numbers, of the panoptic masks, for what VOC has a name for.
_COCO = {
    "person": 1,
    "bicycle": 2,
    "car": 3,
    "motorbike": 4,
    "aeroplane": 5,
    "bus": 6,
    "train": 7,
    "boat": 9,
    "bird": 16,
    "cat": 17,
    "dog": 18,
    "horse": 19,
    "sheep": 20,
    "cow": 21,
    "bottle": 44,
    "chair": 62,
    "sofa": 63,
    "pottedplant": 64,
    "diningtable": 67,
    "tvmonitor": 72,
}
_COCO_UNNAMED = 0
_COCO_LAST = 200
# CamVid's eleven classes and void: cars, pedestrians, and bicyclists, who are two of VOC's classes in one.
_CAMVID = {"car": 8, "person": 9}
_CAMVID_BICYCLIST, _CAMVID_VOID = 10, 11

# The colours of ImageNet, for networks that take them channel by channel.
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_SPREAD = np.array([0.229, 0.224, 0.225], np.float32)

# H x W uint8: 0..20, or VOID.
Labels = NDArray[np.uint8]
Segmenter = Callable[[RGB8], Labels]


def _table(names: dict[str, int], void: tuple[int, ...], last: int) -> NDArray[np.int16]:
    """Return VOC's number for each number of a mask; -1 where there is none."""
    table = np.full(256, -1, np.int16)
    table[: last + 1] = 0
    for name, number in names.items():
        table[number] = VOC.index(name)
    table[list(void)] = VOID
    return table


# By the folder that the masks are in.
MASKS = {
    "semantic": _table(_COCO, (_COCO_UNNAMED,), _COCO_LAST),
    "labels": _table(_CAMVID, (_CAMVID_BICYCLIST, _CAMVID_VOID), _CAMVID_VOID),
}


def read_mask(path: Path, kind: str) -> Labels:
    """Read a mask, a PNG that holds a class's number for each pixel, in VOC's classes.

    Args:
        path: The file.
        kind: Out of MASKS: "semantic" has COCO's panoptic numbers, "labels" CamVid's.

    Raises:
        UnrainError: It is no such file.
    """
    try:
        with Image.open(path) as image:
            numbers = np.asarray(image)
    except OSError as error:
        raise UnrainError(f"{path}: not a readable picture ({error}); remove or replace it") from error
    if numbers.ndim != 2 or numbers.dtype != np.uint8:
        raise UnrainError(f"{path}: not a mask of one 8-bit number for each pixel; replace it")
    named: NDArray[np.int16] = MASKS[kind][numbers]
    if (named < 0).any():
        raise UnrainError(f"{path}: has the number {numbers[named < 0][0]}, which is no class; replace it")
    return np.asarray(named, np.uint8)


def confusion(truth: Labels, found: Labels) -> NDArray[np.int64]:
    """Count which class was taken for which.

    Shape:
        truth, found: H x W. Result: 21 x 21, a row for each true class; VOID of the truth counts for nothing.
    """
    counted = truth != VOID
    pairs = truth[counted].astype(np.int64) * len(VOC) + found[counted]
    counts: NDArray[np.int64] = np.bincount(pairs, minlength=len(VOC) ** 2)
    return counts.reshape(len(VOC), len(VOC))


def mean_iou(table: NDArray[np.int64]) -> tuple[float, int]:
    """Return the mean intersection over union in per cent, and of how many classes.

    Args:
        table: The sum of all pictures' tables. Classes that the truth has not are left out of the mean; where
            the network sees one of them, the true class loses all the same.

    Raises:
        ValueError: Nothing was counted.
    """
    true = table.sum(axis=1)
    present = true > 0
    if not present.any():
        raise ValueError("not one pixel of a known class")
    union = true + table.sum(axis=0) - np.diag(table)
    return 100 * float(np.mean(np.diag(table)[present] / union[present])), int(present.sum())


def open_segmenter(path: Path, threads: int = 0) -> Segmenter:
    """Make a segmentation network ready to run.

    Args:
        path: A TFLite file, or an ONNX file.
        threads: CPU threads, 0 for all.

    Raises:
        UnrainError: It is no such file, or no network of VOC's 21 classes.
        ModuleNotFoundError: It is TFLite, and its interpreter is not here.
    """
    if not path.is_file():
        raise UnrainError(f"{path}: no such file, give a segmentation network as FILE.tflite or FILE.onnx")
    if path.suffix.lower() == ".tflite":
        return _tflite(path, threads)
    if path.suffix.lower() == ".onnx":
        network = Network(path, threads)
        return _Segmenter(path, network.shape, network.dtype, network)
    raise UnrainError(f"{path}: give a segmentation network as FILE.tflite or FILE.onnx")


class _Segmenter:
    """A network that gives 21 scores for each pixel, or each cell, of what it is fed.

    Colours are fed as the layouts' own worlds do: 1 x H x W x 3 in [-1, 1], as TensorFlow's DeepLab, and
    1 x 3 x H x W with ImageNet's mean and spread taken out, as PyTorch's; whole numbers as they are. The
    picture is stretched to the input's size where that is fixed.
    """

    def __init__(
        self, path: Path, shape: list[Any], dtype: type | None, run: Callable[[NDArray[Any]], NDArray[Any]]
    ) -> None:
        self._colours_last = len(shape) == 4 and shape[3] == 3
        picture = len(shape) == 4 and (self._colours_last or shape[1] == 3)
        if not picture or dtype not in (np.float32, np.uint8):
            raise UnrainError(
                f"{path}: its input is not float32 or uint8 1 x H x W x 3 or 1 x 3 x H x W but "
                f"{shown(shape)}; give a segmentation network"
            )
        sides = shape[1:3] if self._colours_last else shape[2:]
        fixed = all(isinstance(side, int) for side in sides)
        self._size = (int(sides[1]), int(sides[0])) if fixed else None
        self._path, self._dtype, self._run = path, dtype, run

    def __call__(self, picture: RGB8) -> Labels:
        size = (picture.shape[1], picture.shape[0])
        image = Image.fromarray(picture)
        if self._size and self._size != size:
            image = image.resize(self._size, Image.Resampling.BILINEAR)
        colours: NDArray[Any] = np.asarray(image, np.float32)
        if self._dtype == np.float32:
            colours = colours / 127.5 - 1 if self._colours_last else (colours / 255 - _MEAN) / _SPREAD
        planes = colours if self._colours_last else colours.transpose(2, 0, 1)
        scores = self._run(np.ascontiguousarray(planes[None], self._dtype))
        if scores.ndim == 4 and scores.shape[1] == len(VOC) and scores.shape[3] != len(VOC):
            scores = scores.transpose(0, 2, 3, 1)
        if scores.ndim != 4 or scores.shape[0] != 1 or scores.shape[3] != len(VOC):
            raise UnrainError(
                f"{self._path}: gives {shown(scores.shape)} instead of scores of VOC's "
                f"{len(VOC)} classes, 1 x H x W x {len(VOC)} or 1 x {len(VOC)} x H x W; give another network"
            )
        return _strongest(scores[0], size)


def _strongest(scores: NDArray[Any], size: tuple[int, int]) -> Labels:
    """Bring the scores to the picture's size, and return the best class of each pixel.

    Shape:
        scores: h x w x 21. size: width and height of the picture. Result: height x width.
    """
    best = np.full((size[1], size[0]), -np.inf, np.float32)
    labels = np.zeros((size[1], size[0]), np.uint8)
    for number in range(scores.shape[2]):
        plane = Image.fromarray(np.ascontiguousarray(scores[..., number], np.float32))
        grown = np.asarray(plane.resize(size, Image.Resampling.BILINEAR))
        better = grown > best
        best[better], labels[better] = grown[better], number
    return labels


def _tflite(path: Path, threads: int) -> Segmenter:
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(model_path=str(path), num_threads=threads or None)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise UnrainError(
            f"{path}: not a model that LiteRT can open ({first_line(error)}); give another file"
        ) from error
    (into, *_), (out, *_) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(planes: NDArray[Any]) -> NDArray[Any]:
        interpreter.set_tensor(into["index"], planes)
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(out["index"]))

    return _Segmenter(path, [int(side) for side in into["shape"]], into["dtype"], run)
