import csv
import json
import re
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("pycocotools")

from toys import SHARED, natural
from unrain import cli
from unrain.derainer import Derainer
from unrain.errors import UnrainError
from unrain.lab.bench.downstream import detection, tasks
from unrain.lab.bench.downstream.detection import (
    CLASSES,
    MOST_BOXES,
    average_precision,
    letterbox,
    read_boxes,
    resampled_precision,
    strongest,
)
from unrain.lab.bench.downstream.segmentation import (
    MASKS,
    VOC,
    VOID,
    confusion,
    mean_iou,
    open_segmenter,
    read_mask,
)
from unrain.lab.metrics import psnr_ssim
from unrain.lab.metrics.measures import UNCHANGED

COCO_CONFIG = SHARED / "data" / "coco" / "semantic_segmentation_config.yaml"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Results are kept below the working folder."""
    monkeypatch.chdir(tmp_path)


def save(path, nodes, into, out, constants, dtype=TensorProto.FLOAT):
    """Write an ONNX file; shapes may have names for free sides."""
    graph = helper.make_graph(
        nodes,
        "hand_made",
        [helper.make_tensor_value_info("picture", dtype, into)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def fixed_detector(path, rows, size=(64, 64)):
    """A detector that finds the same rows, whose first number is 1 plus the mean of its input's red."""
    rows = np.asarray(rows, np.float32)[None]
    nodes = [
        helper.make_node("ReduceMean", ["picture", "axes"], ["means"], keepdims=0),
        helper.make_node("Gather", ["means", "red"], ["mean"], axis=1),
        helper.make_node("Mul", ["mark", "mean"], ["added"]),
        helper.make_node("Add", ["rows", "added"], ["out"]),
    ]
    mark = np.zeros_like(rows)
    mark[0, 0, 0] = 1
    constants = {"rows": rows, "mark": mark, "axes": np.array([2, 3]), "red": np.array([0])}
    return save(path, nodes, [1, 3, *size], [*rows.shape], constants)


def row(x, y, width, height, *, kinds, objectness=None):
    scores = [0.0] * CLASSES
    for kind, score in kinds.items():
        scores[kind] = score
    return [x, y, width, height, *([] if objectness is None else [objectness]), *scores]


def test_a_letterbox_keeps_the_picture_whole():
    picture = natural(20, 40)
    canvas, scale, (left, top) = letterbox(picture, (64, 48))
    assert (canvas.shape, scale, left, top) == ((48, 64, 3), 1.6, 0, 8)
    assert (canvas[:8] == 114).all() and (canvas[40:] == 114).all()
    np.testing.assert_array_equal(
        canvas[8:40], np.asarray(Image.fromarray(picture).resize((64, 32), Image.Resampling.BILINEAR))
    )
    same, scale, corner = letterbox(picture, (40, 20))
    assert (scale, corner) == (1, (0, 0))
    np.testing.assert_array_equal(same, picture)


def test_of_boxes_that_overlap_the_best_of_each_class_stays():
    boxes = np.array(
        [[20, 20, 10, 10], [22, 20, 10, 10], [21, 20, 10, 10], [50, 50, 8, 4], [90, 90, 30, 30]], float
    )
    scores = np.zeros((5, CLASSES))
    # Beside the best one, IoU 8/12 goes and 9/11 goes, in their own class only.
    scores[0, 3], scores[1, 3], scores[2, 7] = 0.9, 0.8, 0.7
    scores[3, 3], scores[3, 4] = 0.0009, 0.5
    scores[4, 79] = 0.6
    found = strongest(boxes, scores, (100, 96))
    np.testing.assert_allclose(
        found,
        [
            [15, 15, 10, 10, 0.9, 3],
            [16, 15, 10, 10, 0.7, 7],
            [75, 75, 25, 21, 0.6, 79],
            [46, 48, 8, 4, 0.5, 4],
        ],
        rtol=1e-6,
    )
    boxes[1, 0] = 22.5  # 7.5 / 12.5: not enough to go
    assert len(strongest(boxes, scores, (100, 96))) == 5
    assert strongest(boxes, np.zeros((5, CLASSES)), (100, 96)).shape == (0, 6)
    many = np.column_stack((np.arange(400) * 20, np.full(400, 5), np.full(400, 9), np.full(400, 9)))
    kept = strongest(many, np.tile(np.linspace(0.1, 0.9, 400)[:, None], (1, 1)), (9000, 10))
    assert len(kept) == MOST_BOXES
    assert kept[0, 4] == pytest.approx(0.9) and (np.diff(kept[:, 4]) <= 0).all()


@pytest.mark.parametrize("layout", ["84 x N", "N x 84", "N x 85"])
def test_a_detectors_boxes_are_in_pixels_of_the_picture(tmp_path, layout):
    objectness = 0.5 if layout == "N x 85" else None
    rows = [
        row(32, 32, 16, 8, kinds={2: 0.8, 5: 0.4}, objectness=objectness),
        row(8, 24, 8, 8, kinds={79: 0.6}, objectness=objectness),
    ]
    path = fixed_detector(tmp_path / "yolo.onnx", rows)
    if layout == "84 x N":
        model = onnx.load(path)
        model.graph.node[-1].output[0] = "rows_first"
        model.graph.node.append(helper.make_node("Transpose", ["rows_first"], ["out"], perm=[0, 2, 1]))
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 84, 2]))
        onnx.save(model, path)
    picture = np.zeros((64, 128, 3), np.uint8)
    picture[..., 0] = 255
    found = detection.open_detector(str(path), threads=1)(picture)
    # Twice as large as the input, with 16 grey lines above; half of the input is red, the rest 114 / 255.
    shift = 2 * (0.5 + 0.5 * 114 / 255)
    factor = 1 if objectness is None else objectness
    np.testing.assert_allclose(
        found,
        [
            [48 + shift, 24, 32, 16, 0.8 * factor, 2],
            [8, 8, 16, 16, 0.6 * factor, 79],
            [48 + shift, 24, 32, 16, 0.4 * factor, 5],
        ],
        rtol=1e-5,
    )


def test_what_is_no_detector_is_refused(tmp_path):
    (tmp_path / "text.onnx").write_text("text")
    (tmp_path / "text.pt").write_text("text")
    (tmp_path / "lone.cfg").write_text("[net]")
    other = fixed_detector(tmp_path / "other.onnx", np.zeros((3, 24)))
    flat = save(
        tmp_path / "flat.onnx", [helper.make_node("Identity", ["picture"], ["out"])], [1, 9], [1, 9], {}
    )
    picture = np.zeros((8, 8, 3), np.uint8)
    for text, words in (
        (tmp_path / "none.onnx", "none.onnx: no such file"),
        (tmp_path / "text.onnx", "not a model that ONNX Runtime can open"),
        (tmp_path / "text.pt", "give a detector as FILE.onnx or FILE.cfg"),
        (tmp_path / "lone.cfg", "give a detector as FILE.onnx or FILE.cfg"),
        (f"{tmp_path}/lone.cfg+{tmp_path}/lone.weights", "lone.weights: no such file"),
        (flat, "its input is not float32 1 x 3 x H x W but 1 x 9"),
        (other, "gives float32 1 x 3 x 24 instead of float32 1 x 84 x N or 1 x N x 85"),
    ):
        with pytest.raises(UnrainError, match=re.escape(words)) as caught:
            detection.open_detector(str(text))(picture)
        assert "\n" not in str(caught.value)


def test_a_darknet_detector_is_read_with_its_weak_boxes(tmp_path):
    pytest.importorskip("cv2")
    description = """[net]
width=32
height=32
channels=3

[convolutional]
size=1
stride=32
pad=0
filters=85
activation=linear

[yolo]
mask=0
anchors=16,8
classes=80
num=1
"""
    biases = np.full(85, -20, np.float32)
    biases[:5] = 0, 0, 0, 0, 2
    biases[5 + 3], biases[5 + 6] = 1, -3
    weights = np.zeros(85 * 3, np.float32)
    header = np.array([0, 2, 5, 0, 0], np.int32)
    (tmp_path / "tiny.cfg").write_text(description)
    (tmp_path / "tiny.weights").write_bytes(header.tobytes() + biases.tobytes() + weights.tobytes())
    (tmp_path / "other.cfg").write_text("[net]\nwidth=32\nheight=32\nchannels=3\n\n[none]\n")
    found = detection.open_detector(f"{tmp_path}/tiny.cfg+{tmp_path}/tiny.weights")(natural(40, 80))

    def sigmoid(value):
        return 1 / (1 + np.exp(-value))

    scores = sigmoid(2) * sigmoid(1), sigmoid(2) * sigmoid(-3)
    assert scores[1] < 0.2
    np.testing.assert_allclose(
        found, [[20, 15, 40, 10, scores[0], 3], [20, 15, 40, 10, scores[1], 6]], rtol=1e-4
    )
    with pytest.raises(UnrainError, match=r"other\.cfg: not a network that OpenCV can read with tiny\."):
        detection.open_detector(f"{tmp_path}/other.cfg+{tmp_path}/tiny.weights")


def test_true_boxes_are_read_from_shares_of_the_picture(tmp_path):
    path = tmp_path / "boxes.txt"
    path.write_text("3 0.5 0.5 0.2 0.4\n79 0.1 0.25 0.2 0.5\n")
    np.testing.assert_allclose(read_boxes(path, (100, 50)), [[40, 15, 20, 20, 1, 3], [0, 0, 20, 25, 1, 79]])
    path.write_text("")
    assert read_boxes(path, (100, 50)).shape == (0, 6)
    for text in ("80 .5 .5 .1 .1", "0.5 .5 .5 .1 .1", "1 .5 .5 .1", "cat .5 .5 .1 .1"):
        path.write_text(f"0 .5 .5 .1 .1\n{text}\n")
        with pytest.raises(UnrainError, match=r"boxes\.txt: line 2 is not a class below 80"):
            read_boxes(path, (100, 50))


def test_average_precision_is_what_can_be_worked_out_by_hand():
    truth = {"a": np.array([[10, 10, 20, 20, 1, 0], [50, 50, 20, 20, 1, 0]], float), "b": np.zeros((0, 6))}
    assert average_precision(truth, truth) == (pytest.approx(100), pytest.approx(100))
    nothing = {"a": np.zeros((0, 6)), "b": np.zeros((0, 6))}
    assert average_precision(truth, nothing) == (0, 0)
    # One of two is found, after a false one: precision 1/2 up to recall 1/2, 51 of COCO's 101 points.
    found = {"a": np.array([[10, 10, 20, 20, 0.8, 0]], float), "b": np.array([[5, 5, 9, 9, 0.9, 0]], float)}
    assert average_precision(truth, found) == (pytest.approx(51 / 2 / 1.01), pytest.approx(51 / 2 / 1.01))
    # An IoU of 0.625 counts at 0.5, 0.55 and 0.6, three of the ten overlaps.
    truth = {"a": np.array([[0, 0, 16, 10, 1, 4]], float)}
    found = {"a": np.array([[0, 0, 10, 10, 0.3, 4], [0, 0, 16, 10, 0.9, 5]], float)}
    assert average_precision(truth, found) == (pytest.approx(30), pytest.approx(100))
    # Two classes count alike, however many boxes they have.
    truth = {"a": np.array([[i * 30, 0, 20, 20, 1, 1] for i in range(3)] + [[0, 50, 9, 9, 1, 2]], float)}
    found = {"a": truth["a"][:3]}
    assert average_precision(truth, found) == (pytest.approx(50), pytest.approx(50))
    with pytest.raises(ValueError, match="not one true box"):
        average_precision(nothing, nothing)


def random_boxes(random, count):
    corners, sizes = random.uniform(0, 60, (count, 2)), random.uniform(10, 40, (count, 2))
    return np.column_stack((corners, sizes, random.uniform(0.1, 1, count), random.integers(0, 3, count)))


def test_the_precision_of_a_set_drawn_is_that_of_its_pictures():
    random = np.random.default_rng(0)
    truth = {name: random_boxes(random, 5) for name in "abcd"} | {"e": np.zeros((0, 6))}
    found = {
        name: np.vstack(
            (boxes + random.normal(0, 1.5, boxes.shape) * [1, 1, 1, 1, 0, 0], random_boxes(random, 2))
        )
        for name, boxes in truth.items()
    }
    draws = np.array([[0, 1, 2, 3, 4], [3, 3, 0, 4, 4], [1, 0, 1, 1, 2], [4, 4, 4, 4, 4]])
    values = resampled_precision(truth, found, draws)
    for draw, value in zip(draws[:-1], values, strict=False):
        chosen = {str(i): list(truth)[place] for i, place in enumerate(draw)}
        expected, _ = average_precision(
            {name: truth[one] for name, one in chosen.items()},
            {name: found[one] for name, one in chosen.items()},
        )
        assert value == pytest.approx(expected) and 0 < value < 100
    assert np.isnan(values[-1])
    with pytest.raises(ValueError, match="not one true box"):
        resampled_precision({"a": truth["e"]}, {"a": found["a"]}, draws[:, :1])


def test_every_class_of_voc_has_its_coco_class():
    table = MASKS["semantic"]
    assert sorted(table[1:201][table[1:201] > 0].tolist()) == list(range(1, 21))
    assert table[0] == VOID
    assert (table[201:] == -1).all()
    camvid = {0: 0, 3: 0, 8: VOC.index("car"), 9: VOC.index("person"), 10: VOID, 11: VOID, 12: -1}
    assert {number: int(MASKS["labels"][number]) for number in camvid} == camvid


@pytest.mark.skipif(not COCO_CONFIG.is_file(), reason="shared/data/coco is not here")
def test_the_classes_are_matched_by_their_names():
    lines = re.findall(r"^  (\d+): (.+)$", COCO_CONFIG.read_text(), re.MULTILINE)
    spelt = {"airplane": "aeroplane", "motorcycle": "motorbike", "couch": "sofa", "tv": "tvmonitor"}
    matched = set()
    for number, name in lines:
        own = spelt.get(name, name.replace(" ", ""))
        expected = VOID if name == "unlabeled" else VOC.index(own) if own in VOC else 0
        assert MASKS["semantic"][int(number)] == expected, name
        matched |= {own} & set(VOC)
    # There is no cow in these pictures, so their list has none.
    assert set(VOC) - matched == {"background", "cow"}


def test_a_confusion_matrix_counts_every_known_pixel():
    rng = np.random.default_rng(3)
    truth = rng.choice([0, 1, 15, 20, VOID], (9, 7)).astype(np.uint8)
    found = rng.choice([0, 1, 2, 20], (9, 7)).astype(np.uint8)
    table = confusion(truth, found)
    expected = np.zeros((21, 21), int)
    for i, j in zip(truth.ravel().tolist(), found.ravel().tolist(), strict=True):
        if i != VOID:
            expected[i, j] += 1
    np.testing.assert_array_equal(table, expected)
    known = truth != VOID
    shares = []
    for number in (0, 1, 15, 20):
        true, guessed = known & (truth == number), known & (found == number)
        shares.append((true & guessed).sum() / (true | guessed).sum())
    iou, classes = mean_iou(table)
    assert (iou, classes) == (pytest.approx(100 * np.mean(shares)), 4)


def test_mean_iou_is_what_can_be_worked_out_by_hand():
    truth = np.array([[0, 0, 0, 0], [15, 15, 7, VOID]], np.uint8)
    found = np.array([[0, 0, 0, 15], [15, 15, 3, 3]], np.uint8)
    # Background 3/4, person 2/3, car 0/1; birds, which are not there, have no share of the mean.
    assert mean_iou(confusion(truth, found)) == (pytest.approx(100 * (3 / 4 + 2 / 3) / 3), 3)
    with pytest.raises(ValueError, match="not one pixel"):
        mean_iou(np.zeros((21, 21), np.int64))


def test_a_mask_is_read_as_voc_classes(tmp_path):
    path = tmp_path / "mask.png"
    numbers = np.array([[0, 1, 187], [44, 3, 12]], np.uint8)
    Image.fromarray(numbers).save(path)
    np.testing.assert_array_equal(read_mask(path, "semantic"), [[VOID, 15, 0], [5, 7, 0]])
    with pytest.raises(UnrainError, match=r"mask\.png: has the number 187, which is no class"):
        read_mask(path, "labels")
    Image.new("RGB", (3, 2)).save(path)
    with pytest.raises(UnrainError, match=r"mask\.png: not a mask"):
        read_mask(path, "semantic")
    path.write_text("text")
    with pytest.raises(UnrainError, match=r"mask\.png: not a readable picture"):
        read_mask(path, "semantic")


def segmenter(path, *, last, size=(None, None), classes=21, dtype=TensorProto.FLOAT):
    """Background scores 0.25; a person as much as there is red, a car as much as there is blue."""
    weights = np.zeros((3, classes), np.float32)
    bias = np.full(classes, -9, np.float32)
    bias[0], bias[-6], bias[7] = 0.25, 0, 0
    weights[0, -6] = weights[2, 7] = 1
    sides = [one or name for one, name in zip(size, ("height", "width"), strict=True)]
    nodes = [helper.make_node("Cast", ["picture"], ["floats"], to=TensorProto.FLOAT)]
    if last:
        nodes.append(helper.make_node("MatMul", ["floats", "weights"], ["products"]))
        nodes.append(helper.make_node("Add", ["products", "bias"], ["out"]))
        return save(
            path, nodes, [1, *sides, 3], [1, *sides, classes], {"weights": weights, "bias": bias}, dtype
        )
    constants = {"weights": weights.T[..., None, None].copy(), "bias": bias}
    nodes.append(helper.make_node("Conv", ["floats", "weights", "bias"], ["out"]))
    return save(path, nodes, [1, 3, *sides], [1, classes, *sides], constants, dtype)


@pytest.mark.parametrize(
    ("layout", "red", "blue"),
    [
        # Just above and below a score of 0.25: [-1, 1]; ImageNet's mean 0.485 and spread 0.229; plain bytes.
        ({"last": True}, 160, 159),
        ({"last": False}, 139, 117),
        ({"last": True, "dtype": TensorProto.UINT8}, 1, 0),
        ({"last": False, "size": (8, 12)}, 255, 0),
    ],
)
def test_a_segmentation_network_names_pixels(tmp_path, layout, red, blue):
    picture = np.zeros((16, 24, 3), np.uint8)
    picture[:8, :12, 0] = red
    picture[8:, 12:, 2] = 255
    picture[8:, :12, 2] = blue
    found = open_segmenter(segmenter(tmp_path / "net.onnx", **layout), threads=1)(picture)
    expected = np.zeros((16, 24), int)
    expected[:8, :12] = VOC.index("person")
    expected[8:, 12:] = VOC.index("car")
    away = np.ones((16, 24), bool)
    # A network of half the size cannot know where exactly the borders are.
    away[6:10] = away[:, 10:14] = "size" not in layout
    np.testing.assert_array_equal(found[away], expected[away])


def test_what_is_no_segmentation_network_is_refused(tmp_path):
    (tmp_path / "text.onnx").write_text("text")
    (tmp_path / "net.pb").write_text("text")
    picture = np.zeros((8, 8, 3), np.uint8)
    for path, words in (
        (tmp_path / "none.tflite", "none.tflite: no such file"),
        (tmp_path / "net.pb", "give a segmentation network as FILE.tflite or FILE.onnx"),
        (tmp_path / "text.onnx", "not a model that ONNX Runtime can open"),
        (
            segmenter(tmp_path / "many.onnx", last=False, classes=150),
            "gives 1 x 150 x 8 x 8 instead of scores",
        ),
        (
            segmenter(tmp_path / "halves.onnx", last=False, dtype=TensorProto.FLOAT16),
            "its input is not float32 or uint8",
        ),
    ):
        with pytest.raises(UnrainError, match=re.escape(words)) as caught:
            open_segmenter(path)(picture)
        assert "\n" not in str(caught.value)


def test_a_broken_tflite_file_is_refused(tmp_path):
    pytest.importorskip("ai_edge_litert")
    (tmp_path / "broken.tflite").write_bytes(b"text" * 40)
    with pytest.raises(UnrainError, match=r"broken\.tflite: not a model that LiteRT can open") as caught:
        open_segmenter(tmp_path / "broken.tflite")
    assert "\n" not in str(caught.value)


def test_rain_depends_on_name_strength_and_seed_alone():
    clean = natural(96, 120)
    for rain in tasks.RAINS:
        np.testing.assert_array_equal(tasks.add_rain(clean, "a", rain), tasks.add_rain(clean, "a", rain))
    np.testing.assert_array_equal(tasks.add_rain(clean, "a", "none", 5), clean)
    others = [("b", "light", 0), ("a", "middling", 0), ("a", "light", 1)]
    for other in others:
        assert (tasks.add_rain(clean, "a", "light") != tasks.add_rain(clean, *other)).any()
    strength = [
        np.mean([psnr_ssim.psnr(tasks.add_rain(clean, str(i), rain), clean) for i in range(8)])
        for rain in ("light", "middling", "heavy")
    ]
    assert strength[0] > strength[1] + 3 > strength[2] + 6


@pytest.fixture
def data(tmp_path):
    """Two pictures with one person each, on the left; the rest has no class."""
    folder = tmp_path / "data" / "scenes"
    for part in ("images", "boxes", "semantic"):
        (folder / part).mkdir(parents=True)
    for i in range(2):
        Image.fromarray(natural(48, 64, seed=i)).save(folder / "images" / f"{i}.png")
        (folder / "boxes" / f"{i}.txt").write_text("0 0.25 0.5 0.5 1\n")
        mask = np.full((48, 64), 187, np.uint8)
        mask[:, :32] = 1
        Image.fromarray(mask).save(folder / "semantic" / f"{i}.png")
    return tmp_path / "data"


@pytest.fixture
def arguments(data, tmp_path, tiny_model):
    # Finds the person all right up to a shift by less than a pixel, and a cat with little confidence.
    rows = [row(15.5, 32, 32, 48, kinds={0: 0.8}), row(40, 32, 20, 20, kinds={15: 0.1})]
    yolo = fixed_detector(tmp_path / "yolo.onnx", rows)
    net = segmenter(tmp_path / "net.onnx", last=False)
    arguments = ["bench", "tasks", str(tiny_model), "--data", str(data), "--suite", "scenes", "--json"]
    return [*arguments, "--detect", str(yolo), "--segment", str(net)]


def test_the_command_scores_every_candidate_in_every_rain(arguments, tmp_path, capsys):
    recursions = ["--recursions", "1", "--recursions", "2"]
    assert cli.main([*arguments, *recursions]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(one["rain"], one["model"], one["recursions"], one["by"]) for one in rows] == [
        (rain, model, recursions, by)
        for rain in ("none", "light", "middling", "heavy")
        for model, recursions in (("input", None), ("tiny", 1), ("tiny", 2))
        for by in ("yolo.onnx", "net.onnx")
    ]
    assert all(one["pictures"] == 2 and one["reused"] == 0 for one in rows)
    assert [one["psnr"] for one in rows[:2]] == [None, None]
    assert rows[6]["psnr"] > rows[12]["psnr"] > rows[18]["psnr"]
    for one in rows[::2]:
        assert one["map"] > 90 and one["map50"] == 100 and one["miou"] is None and one["classes"] == 1
    assert all(one["map"] is None and 0 <= one["miou"] <= 100 for one in rows[1::2])
    # The detector finds the same boxes up to a pixel; the input has nothing to differ from.
    for one in rows:
        if one["model"] == "input":
            assert one["low"] is None and one["high"] is None
        else:
            change = "miou" if one["map"] is None else "map"
            before = next(
                r for r in rows if (r["rain"], r["by"], r["model"]) == (one["rain"], one["by"], "input")
            )
            assert (
                one["low"] <= one[change] - before[change] + 0.01
                and one[change] - before[change] - 0.01 <= one["high"]
            )
    # Background and person.
    assert all(one["classes"] == 2 for one in rows[1::2])
    arguments = [one for one in arguments if one != "--json"]
    assert cli.main([*arguments, *recursions, "--csv"]) == 0
    written = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [one["miou"] for one in written] == [str(one["miou"] or "") for one in rows]
    assert cli.main([*arguments, "--rain", "heavy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 4 and "mAP50-95" in lines[0] and lines[-1].startswith("heavy     tiny")


def test_the_networks_see_the_derained_pictures(arguments, data, tmp_path, tiny_model, capsys):
    assert cli.main([*arguments, "--rain", "middling"]) == 0
    rows = json.loads(capsys.readouterr().out)
    segment = open_segmenter(tmp_path / "net.onnx")
    derainer = Derainer(tiny_model)
    truth = np.zeros((48, 64), np.uint8)
    truth[:, :32] = VOC.index("person")
    for one, see in ((rows[1], lambda rainy: rainy), (rows[3], derainer)):
        counted, psnr = np.zeros((21, 21), np.int64), []
        for i in range(2):
            clean = np.asarray(Image.open(data / "scenes" / "images" / f"{i}.png"))
            shown = see(tasks.add_rain(clean, str(i), "middling"))
            counted += confusion(truth, segment(shown))
            psnr.append(psnr_ssim.psnr(shown, clean))
        assert one["miou"] == round(mean_iou(counted)[0], 2)
        assert one["psnr"] == round(np.mean(psnr), 2)


def test_pictures_without_rain_are_left_alone_where_that_is_wanted(arguments, capsys):
    arguments += ["--rain", "none", "--rain", "heavy"]
    assert cli.main([*arguments, "--only-rainy"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [one["left"] for one in rows] == [0, 0, 2, 2, 0, 0, 0, 0]
    assert [one["psnr"] for one in rows[2:4]] == [UNCHANGED] * 2
    assert all(one["low"] == one["high"] == 0 for one in rows[2:4])
    assert cli.main(arguments) == 0
    rows = json.loads(capsys.readouterr().out)
    assert all(one["left"] == 0 for one in rows)
    # The pictures as they are, but not what a candidate makes of them, are those of the first run.
    assert [one["reused"] for one in rows] == [2, 2, 0, 0, 2, 2, 0, 0]
    assert cli.main([one for one in [*arguments, "--only-rainy"] if one != "--json"]) == 0
    assert capsys.readouterr().out.count("2 left alone 2 reused") == 2


def test_a_killed_run_goes_on_and_a_second_one_reuses(arguments, derained, tmp_path, capsys):
    arguments += ["--rain", "light"]
    assert cli.main(arguments) == cli.EXIT_FAILED
    capsys.readouterr()
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    first = json.loads(out)
    # A picture is derained once for both networks.
    assert len(derained) == 2 + 1
    assert [one["reused"] for one in first] == [2, 2, 1, 1]
    assert "6 of 8 values are from an earlier run with the same files, code and libraries" in err
    assert cli.main(arguments) == 0
    again = json.loads(capsys.readouterr().out)
    assert len(derained) == 3
    assert [one | {"reused": 0} for one in again] == [one | {"reused": 0} for one in first]
    assert cli.main([*arguments, "--seed", "1"]) == 0
    assert [one["reused"] for one in json.loads(capsys.readouterr().out)] == [0] * 4
    # Another detector: only what it sees is measured again.
    fixed_detector(tmp_path / "yolo.onnx", [row(9, 9, 4, 4, kinds={0: 0.8})])
    assert cli.main(arguments) == 0
    again = json.loads(capsys.readouterr().out)
    assert [one["reused"] for one in again] == [0, 2, 0, 2]
    assert again[0]["map"] == 0
    assert cli.main([*arguments, "--fresh"]) == 0
    assert [one["reused"] for one in json.loads(capsys.readouterr().out)] == [0] * 4


def test_wrong_commands_are_refused(arguments, data, tmp_path, tiny_model, capsys):
    base = ["bench", "tasks", str(tiny_model), "--data", str(data)]
    yolo = ["--detect", str(tmp_path / "yolo.onnx")]
    net = ["--segment", str(tmp_path / "net.onnx")]
    lone = data / "lone" / "images"
    lone.mkdir(parents=True)
    Image.fromarray(natural(48, 64)).save(lone / "0.png")
    scenes = [*base, "--suite", "scenes"]
    for wrong, words in (
        (scenes, "give a detector with --detect FILE"),
        ([*scenes, *yolo, "--rain", "hail"], "hail: no such rain, choose among none, light, middling, heavy"),
        ([*base, *yolo], "coco/images: no such folder"),
        ([*base, "--suite", "lone", *yolo], "lone: has no folder boxes, which --detect needs"),
        ([*base, "--suite", "lone", *net], "lone: has no folder semantic or labels, which --segment needs"),
        ([*scenes, str(lone), *yolo], "images: these pictures were derained from other rain"),
    ):
        usage = "give a detector" in words or "no such rain" in words
        assert cli.main(wrong) == (cli.EXIT_USAGE if usage else cli.EXIT_FAILED)
        err = capsys.readouterr().err
        assert words in err
        assert len(err.splitlines()) == 1
    (lone / "0.jpg").write_text("text")
    assert cli.main([*base, "--suite", "lone", *yolo]) == cli.EXIT_FAILED
    assert "lone/images/0.jpg: another picture has that name" in capsys.readouterr().err
    (data / "scenes" / "images" / "2.png").write_text("text")
    for part in ("boxes/2.txt", "semantic/2.png"):
        (data / "scenes" / part).write_text("")
    assert cli.main([*scenes, *yolo]) == cli.EXIT_FAILED
    assert "images/2.png: no picture in JPEG" in capsys.readouterr().err
    (data / "scenes" / "images" / "2.png").unlink()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(data / "scenes" / "semantic" / "1.png")
    assert cli.main([*scenes, *net]) == cli.EXIT_FAILED
    assert "1.png: 9 x 9, its picture 64 x 48; they must have one size" in capsys.readouterr().err
    (data / "scenes" / "semantic" / "1.png").unlink()
    assert cli.main([*scenes, *yolo]) == cli.EXIT_FAILED
    assert "1.png: no such file (1 missing); every picture needs one" in capsys.readouterr().err
    for i in range(2):
        (data / "scenes" / "boxes" / f"{i}.txt").write_text("")
        Image.fromarray(np.zeros((48, 64), np.uint8)).save(data / "scenes" / "semantic" / f"{i}.png")
    for task, words in ((yolo, "has not one box"), (net, "not one pixel of a known class")):
        assert cli.main([*scenes, *task]) == cli.EXIT_FAILED
        assert words in capsys.readouterr().err


def test_a_missing_package_is_named_with_its_extra(arguments, data, tmp_path, monkeypatch, capsys):
    base = ["bench", "tasks", "--data", str(data), "--suite", "scenes"]
    for name in ("tiny.cfg", "tiny.weights", "net.tflite"):
        (tmp_path / name).write_text("text")
    pair = f"{tmp_path}/tiny.cfg+{tmp_path}/tiny.weights"
    for package, task in (("cv2", ["--detect", pair]), ("ai_edge_litert", ["--segment", "net.tflite"])):
        for loaded in [name for name in sys.modules if name.split(".")[0] == package]:
            monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.setitem(sys.modules, package, None)
        assert cli.main([*base, *task]) == cli.EXIT_FAILED
        err = capsys.readouterr().err
        assert f"bench tasks: needs {package}" in err and "pip install 'unrain[tasks]'" in err
        assert len(err.splitlines()) == 1
