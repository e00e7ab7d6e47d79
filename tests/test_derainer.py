"""The one way through: any array in, the same kind out, tiles without seams, memory bounded."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from toys import CONTRACT, add_loop, natural, tiny_network
from unrain import zoo
from unrain.derainer import Derainer
from unrain.engine.onnx_runtime import OnnxRuntimeEngine
from unrain.errors import UnrainError, UsageError


class Fake:
    """An engine which adds to the estimate, so that the number of recursions shows in the result."""

    multiple, halo, recursions, recursive, levels = 8, 0, 3, True, 1

    def __init__(self, gain=0.0, **attributes):
        self.gain = gain
        self.shapes = []
        for name, value in attributes.items():
            setattr(self, name, value)

    def step(self, rainy, estimate):
        assert rainy.dtype == estimate.dtype == np.float32
        assert rainy.shape == estimate.shape
        assert rainy.flags.c_contiguous and estimate.flags.c_contiguous
        self.shapes.append(rainy.shape)
        return estimate + np.float32(self.gain)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2", np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 30, 3), (16, 24), (9, 1)])
def test_what_goes_in_unchanged_comes_out_unchanged(dtype, shape):
    random = np.random.default_rng(0)
    if np.dtype(dtype).kind == "u":
        image = random.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
    else:
        image = random.random(shape).astype(dtype)
    before = image.copy()
    result = Derainer(Fake())(image)
    assert result.dtype == image.dtype and result.shape == shape and result is not image
    np.testing.assert_array_equal(image, before)
    np.testing.assert_allclose(result, image, rtol=1e-6)


@pytest.mark.parametrize(
    "height, width, halo, least, most",
    [
        (1000, 1496, 80, 1496, 1496),
        (1000, 1504, 80, 833, 1152),
        (1560, 1600, 80, 833, 1152),
        (1568, 1600, 80, 600, 832),
        (1568, 1600, 96, 833, 960),
        (1568, 1600, 160, 961, 1152),
        # Two halos, the overlap and a step are more than either tile.
        (1136, 2208, 568, 1160, 1160),
    ],
)
def test_large_pictures_have_smaller_tiles_where_the_context_allows_it(height, width, halo, least, most):
    engine = Fake(halo=halo, recursions=1)
    Derainer(engine, levels=1)(np.zeros((height, width), np.uint8))
    assert least <= max(side for shape in engine.shapes for side in shape[-2:]) <= most


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([64, 72, 128]), st.sampled_from([0, 8, 16]))
def test_tiles_of_a_picture_have_one_size_and_cover_it(height, width, tile, halo):
    engine = Fake(halo=halo, recursions=1)
    image = np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
    np.testing.assert_array_equal(Derainer(engine, tile=tile, levels=1)(image), image)
    assert len(set(engine.shapes)) == 1
    assert max(engine.shapes[0][-2:]) <= tile


def test_results_are_rounded_and_clipped():
    image = np.array([[[0, 100, 255]]], np.uint8)
    assert Derainer(Fake(gain=0.6 / 255), recursions=1)(image).tolist() == [[[1, 101, 255]]]
    assert Derainer(Fake(gain=0.4 / 255), recursions=1)(image).tolist() == [[[0, 100, 255]]]
    assert Derainer(Fake(gain=-50 / 255), recursions=1)(image).tolist() == [[[0, 50, 205]]]
    assert Derainer(Fake(gain=0.5), recursions=1)(image / 255).max() == 1


def test_recursions_default_to_the_models_and_can_be_chosen():
    image = np.zeros((8, 8, 3), np.uint8)
    assert Derainer(Fake(gain=10 / 255))(image).max() == 30
    derained = Derainer(Fake(gain=10 / 255), recursions=5).derain(image)
    assert derained.image.max() == 50 and derained.recursions == 5


class Settling(Fake):
    """Adds 8, 4, 2, 1, ... steps of 8 bits, in the left half of the picture only."""

    recursions = 6

    def step(self, rainy, estimate):
        super().step(rainy, estimate)
        left = (rainy[:, 2:] > 0).astype(np.float32)  # the blue plane marks the left half
        # What was added so far, 16 - 16 / 2^t, says what comes next.
        return estimate + left * (16 / 255 - (estimate[:, :1] - rainy[:, :1])) / 2


def half_marked(height, width):
    image = np.full((height, width, 3), 100, np.uint8)
    image[:, width // 2 :, 2] = 0
    return image


@pytest.mark.parametrize("tile", [None, 24])
@pytest.mark.parametrize(
    "until, recursions", [(5, 1), (3.9, 2), (2.1, 2), (1.9, 3), (0.6, 4), (0.2, 6), (0.01, 6), (None, 6)]
)
def test_recursions_end_when_the_mean_change_is_below_the_threshold(until, recursions, tile):
    # The mean change of recursion t over the whole picture is 8 / 2^t.
    image = half_marked(64, 72)
    derained = Derainer(Settling(), until=until, tile=tile).derain(image)
    assert derained.recursions == recursions
    np.testing.assert_array_equal(derained.image, Derainer(Settling(), recursions=recursions)(image))
    assert derained.image[0, 0, 0] == np.rint(100 + 16 - 16 / 2**recursions)


def test_padding_does_not_count_as_change():
    image = half_marked(64, 72)
    turned = np.ascontiguousarray(image[:, ::-1])
    for cut in (image[:3, :41], turned[:3, :41]):
        marked = (cut[..., 2] > 0).mean()
        assert Derainer(Settling(), until=8 * marked * 1.01).derain(cut).recursions == 1
        assert Derainer(Settling(), until=8 * marked * 0.99).derain(cut).recursions == 2


def test_what_cannot_be_seen_does_not_count_as_change():
    white = np.full((16, 16), 255, np.uint8)
    assert Derainer(Fake(gain=0.1), until=0.01).derain(white).recursions == 1
    assert Derainer(Fake(gain=-0.1), until=0.01).derain(white).recursions == 3


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_threshold_changes_nothing_but_the_number_of_recursions(tiny_model, dtype):
    scale = 1 if dtype == np.float32 else np.iinfo(dtype).max
    image = (natural(90, 70) / 255 * scale).astype(dtype)
    for recursions in (1, 2, 5):
        never = Derainer(tiny_model, recursions=recursions, until=1e-9).derain(image)
        assert never.recursions == recursions
        np.testing.assert_array_equal(never.image, Derainer(tiny_model, recursions=recursions)(image))
    first = Derainer(tiny_model, recursions=5, until=300).derain(image)
    assert first.recursions == 1
    np.testing.assert_array_equal(first.image, Derainer(tiny_model, recursions=1)(image))


def test_tiles_decide_as_the_whole_does(tiny_model):
    image = natural(150, 130)
    seen = set()
    for until in (20, 4, 1, 0.3, 0.1, 0.03, 0.01):
        whole = Derainer(tiny_model, recursions=6, until=until).derain(image)
        tiled = Derainer(tiny_model, recursions=6, until=until, tile=56).derain(image)
        assert whole.recursions == tiled.recursions
        seen.add(whole.recursions)
    assert len(seen) > 2


@pytest.mark.parametrize("until", [0, -1, float("nan")])
def test_a_threshold_that_makes_no_sense_is_refused(until):
    with pytest.raises(UsageError, match="until"):
        Derainer(Fake(), until=until)
    with pytest.raises(UsageError, match="has one"):
        Derainer(Fake(recursive=False), until=1)


def test_a_model_that_is_not_recursive_has_one_recursion():
    fake = Fake(gain=10 / 255, recursive=False)
    assert Derainer(fake).derain(np.zeros((8, 8, 3), np.uint8)).recursions == 1
    assert len(fake.shapes) == 1
    with pytest.raises(UsageError, match="has one"):
        Derainer(fake, recursions=2)


def test_the_rain_layer_is_what_was_taken_away():
    image = natural(40, 50)
    derained = Derainer(Fake(gain=-5 / 255), recursions=1).derain(image)
    assert derained.rain_layer.dtype == np.uint8
    np.testing.assert_array_equal(derained.rain_layer, np.minimum(image, 5))
    assert not Derainer(Fake(gain=5 / 255)).derain(image).rain_layer.any()


def test_views_in_any_order_are_taken():
    image = natural(31, 45)
    upside_down = image[::-1, ::-1, ::-1]
    np.testing.assert_array_equal(Derainer(Fake())(upside_down), upside_down)


def test_grey_stays_grey_through_a_network_in_colour(tiny_model):
    grey = natural(33, 47)[..., 0]
    result = Derainer(tiny_model)(grey)
    colour = Derainer(tiny_model)(np.repeat(grey[..., None], 3, axis=2) / 255)
    assert result.shape == grey.shape
    np.testing.assert_allclose(result / 255, colour.mean(axis=2), atol=0.51 / 255)


def test_progress_counts_every_tile_of_every_recursion():
    calls = []
    Derainer(Fake(), tile=32).derain(
        natural(50, 70), progress=lambda done, total: calls.append((done, total))
    )
    total = calls[-1][1]
    assert calls == [(done, total) for done in range(1, total + 1)]
    assert total % 3 == 0 and total > 3


def test_tiles_are_no_larger_than_asked_and_aligned():
    fake = Fake(halo=13)
    Derainer(fake, tile=99, overlap=10)(natural(301, 203))
    assert max(max(shape[2:]) for shape in fake.shapes) <= 99
    assert all(side % 8 == 0 for shape in fake.shapes for side in shape[2:])


def test_the_recursion_is_carried_out_on_the_padded_picture(tiny_model):
    image = natural(45, 61)
    engine = OnnxRuntimeEngine(zoo.find(tiny_model))
    padded = np.pad(image, ((0, 3), (0, 3), (0, 0)), mode="reflect").transpose(2, 0, 1)[None] / np.float32(
        255
    )
    estimate = padded
    for recursions in (1, 2, 3):
        estimate = engine.step(padded, estimate)
        expected = np.clip(estimate[0, :, :45, :61].transpose(1, 2, 0), 0, 1)
        result = Derainer(tiny_model, recursions=recursions)(image / np.float32(255))
        np.testing.assert_allclose(result, expected, atol=1e-6)


@pytest.fixture(scope="module")
def tiny_engine(tiny_model):
    return OnnxRuntimeEngine(zoo.find(tiny_model), threads=1)


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(1, 200),
    width=st.integers(1, 200),
    tile=st.integers(40, 160),
    overlap=st.integers(0, 60),
    recursions=st.integers(1, 4),
    noise=st.booleans(),
    seed=st.integers(0, 99),
)
def test_tiles_equal_the_whole(tiny_engine, height, width, tile, overlap, recursions, noise, seed):
    tile = max(tile, 40 + -(-overlap // 8) * 8)
    if noise:
        image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    else:
        image = natural(height, width, seed)
    whole = Derainer(tiny_engine, recursions=recursions, tile=1000)(image)
    tiled = Derainer(tiny_engine, recursions=recursions, tile=tile, overlap=overlap)(image)
    assert np.abs(whole.astype(int) - tiled).max() <= 1


@settings(deadline=None, max_examples=20)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    tile=st.integers(48, 99),
    overlap=st.integers(0, 16),
)
def test_tiles_equal_the_whole_to_rounding_in_float(tiny_engine, height, width, tile, overlap):
    image = np.random.default_rng(0).random((height, width, 3), np.float32)
    whole = Derainer(tiny_engine, tile=1000)(image)
    tiled = Derainer(tiny_engine, tile=max(tile, 56), overlap=overlap)(image)
    np.testing.assert_allclose(tiled, whole, atol=2e-6)


def test_blending_is_linear():
    class Numbered(Fake):
        def step(self, rainy, estimate):
            self.shapes.append(rainy.shape)
            return np.full_like(rainy, (len(self.shapes) - 1) / 10)

    fake = Numbered(recursions=1)
    row = Derainer(fake, tile=24, overlap=7)(np.zeros((8, 32, 3), np.float32))[0, :, 0]
    assert len(fake.shapes) == 2
    np.testing.assert_allclose(row[:16], 0)
    np.testing.assert_allclose(row[16:23], np.arange(1, 8) / 80, atol=1e-6)
    np.testing.assert_allclose(row[23:], 0.1, atol=1e-6)


@settings(max_examples=60)
@given(st.data())
def test_parts_hold_all_that_is_wanted_with_its_context(data):
    halo = data.draw(st.sampled_from([0, 8, 40]))
    derainer = Derainer(Fake(halo=halo, recursions=1))
    height, width = (8 * data.draw(st.integers(1, 60)) for _ in range(2))
    wanted = np.zeros((height, width), bool)
    for _ in range(data.draw(st.integers(0, 4))):
        wanted[data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))] = True
    boxes = derainer._boxes(wanted)
    held = np.zeros_like(wanted)
    for rows, columns in boxes:
        for part, extent in ((rows, height), (columns, width)):
            assert 0 <= part.start < part.stop <= extent and part.start % 8 == 0
            assert part.stop % 8 == 0
        inner = [
            slice(part.start + halo * (part.start > 0), part.stop - halo * (part.stop < extent))
            for part, extent in ((rows, height), (columns, width))
        ]
        held[tuple(inner)] = True
    assert not (wanted & ~held).any() and (len(boxes) > 0) == wanted.any()


def test_parts_far_from_each_other_run_alone():
    wanted = np.zeros((640, 960), bool)
    wanted[5, 7] = wanted[600, 900] = True
    boxes = Derainer(Fake(halo=40, recursions=1))._boxes(wanted)
    assert boxes == [[slice(0, 64), slice(0, 64)], [slice(512, 640), slice(832, 960)]]


@pytest.mark.slow
@pytest.mark.parametrize("model", zoo.models(), ids=lambda model: model.name)
@pytest.mark.parametrize("kind", ["noise", "natural"])
def test_every_model_of_the_zoo_tiles_without_seams(model, kind):
    engine = OnnxRuntimeEngine(model, threads=1)
    smallest = 2 * engine.halo + 16 + 2 * engine.multiple
    side = smallest + 5 * engine.multiple + 3
    if kind == "noise":
        image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    else:
        image = natural(side, side)
    whole = Derainer(engine, recursions=1, tile=side + engine.multiple)(image)
    tiled = Derainer(engine, recursions=1, tile=smallest)(image)
    assert np.abs(whole.astype(int) - tiled).max() <= 1


@pytest.mark.parametrize(
    "image, words",
    [
        ([[1, 2]], "not list"),
        (np.zeros((4, 4, 4), np.uint8), "(4, 4, 4)"),
        (np.zeros(4, np.uint8), "(4,)"),
        (np.zeros((0, 4, 3), np.uint8), "no pixel"),
        (np.zeros((4, 4), np.int32), "int32"),
        (np.zeros((4, 4), bool), "bool"),
        (np.full((4, 4), np.nan), "nan"),
        (np.full((4, 4), 255.0), "255.0"),
        (np.full((4, 4), -0.1), "-0.1"),
    ],
)
def test_what_is_no_picture_is_refused(image, words):
    with pytest.raises(UsageError) as caught:
        Derainer(Fake())(image)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"tile": 71}, "at least 72"),
        ({"tile": 0}, "at least 72"),
        ({"tile": 100, "overlap": 70}, "at least 128"),
        ({"overlap": -1}, "overlap"),
        ({"recursions": 0}, "recursions"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(arguments, words):
    with pytest.raises(UsageError, match=words):
        Derainer(Fake(halo=20), **arguments)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16"])
def test_a_pillow_image_gives_a_pillow_image(mode):
    pixels = np.full((8, 9), 30_000, np.uint16) if mode == "I;16" else natural(8, 9)
    picture = Image.fromarray(pixels)
    picture = picture if mode == "I;16" else picture.convert(mode)
    result = Derainer(Fake())(picture)
    assert (result.mode, result.size) == (mode, (9, 8))
    np.testing.assert_array_equal(np.asarray(result), np.asarray(picture))


def test_a_file_gives_an_upright_pillow_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(natural(40, 60)).save(tmp_path / "a.jpg", exif=exif)
    for path in (tmp_path / "a.jpg", str(tmp_path / "a.jpg")):
        assert Derainer(Fake())(path).size == (40, 60)


def test_the_smallest_tile_that_the_message_names_works():
    Derainer(Fake(halo=20), tile=72)(natural(200, 100))


def test_negative_threads_are_refused(tiny_model):
    with pytest.raises(UsageError, match="threads"):
        Derainer(tiny_model, threads=-1)


def test_a_lone_file_carries_its_contract_inside(tmp_path, tiny_model):
    lone = tmp_path / "lone.onnx"
    lone.write_bytes(tiny_model.read_bytes())
    engine = OnnxRuntimeEngine(zoo.find(lone))
    assert {name: getattr(engine, name) for name in CONTRACT} == CONTRACT
    lone.with_suffix(".json").write_text(json.dumps({"halo": 32}))
    assert OnnxRuntimeEngine(zoo.find(lone)).halo == 32


def broken(path, change):
    network = tiny_network()
    change(network)
    onnx.save(network, path)


def rename_output(network):
    network.graph.node[-1].output[0] = network.graph.output[0].name = "else"


def fix_width(network):
    network.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 64


def drop_contract(network):
    del network.metadata_props[:]


def spoil_contract(network):
    network.metadata_props[0].value = json.dumps({**CONTRACT, "multiple": 0})


def nest_contract(network):
    network.metadata_props[0].value = "[" * 100_000


def list_contract(network):
    network.metadata_props[0].value = "[1, 2]"


def give_a_sequence(network):
    network.graph.node[-1].output[0] = "alone"
    network.graph.node.add(op_type="SequenceConstruct", input=["alone"], output=["derained"])
    one = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)
    network.graph.output[0].type.CopyFrom(onnx.helper.make_sequence_type_proto(one))


def give_whole_numbers(network):
    network.graph.node[-1].output[0] = "fine"
    network.graph.node.add(op_type="Cast", input=["fine"], output=["derained"]).attribute.append(
        onnx.helper.make_attribute("to", onnx.TensorProto.UINT8)
    )
    network.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8


def divide_by_nothing(network):
    # 0 / 0 where the picture is black, which a ramp is in its first column.
    network.graph.node[-1].output[0] = "fine"
    network.graph.node.add(op_type="Div", input=["fine", "nothing"], output=["derained"])
    network.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.float32), "nothing"))


@pytest.mark.parametrize(
    "change, words",
    [
        (rename_output, "outputs else"),
        (fix_width, "free height and width"),
        (drop_contract, "multiple"),
        (spoil_contract, "multiple = 0, which must be a whole number from 1 to 1024"),
        (nest_contract, r"metadata cannot be read \(nested too deeply\)"),
        (list_contract, r"metadata cannot be read \(no JSON object\)"),
        (give_a_sequence, r"output derained is seq\(tensor\(float\)\) instead of float"),
        (give_whole_numbers, r"output derained is tensor\(uint8\) instead of float"),
        (divide_by_nothing, "values that are infinite or no numbers"),
    ],
)
def test_a_model_of_another_kind_is_refused(tmp_path, change, words):
    broken(tmp_path / "strange.onnx", change)
    with pytest.raises(UnrainError, match=words) as caught:
        Derainer(tmp_path / "strange.onnx")
    assert "strange.onnx" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"multiple": float("inf")},
        {"multiple": 8.0},
        {"multiple": "8"},
        {"multiple": True},
        {"multiple": 10**30},
        {"halo": -1},
        {"halo": 10**9},
        {"recursions": 10**9},
        {"recursions": float("nan")},
        {"levels": 9},
        {"levels": [1] * 1000},
        {"recursive": "false"},
        {"recursive": 1},
    ],
    ids=str,
)
def test_a_card_with_numbers_that_cannot_be_is_refused(tmp_path, tiny_model, values):
    card = tmp_path / "tiny.json"
    card.write_text(json.dumps({**CONTRACT, **values}))
    (tmp_path / "tiny.onnx").write_bytes(tiny_model.read_bytes())
    with pytest.raises(UnrainError, match=rf"say.? {next(iter(values))} = .*; mend its card") as caught:
        Derainer(tmp_path / "tiny.onnx")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("name", "odd"), [(b"rainy", b"\xff\xfeiny"), (b"height", b"\xff\xfeight")], ids=["input", "size"]
)
def test_names_that_are_no_utf_8_are_refused(tmp_path, tiny_model, name, odd):
    (tmp_path / "odd.onnx").write_bytes(tiny_model.read_bytes().replace(name, odd))
    with pytest.raises(UnrainError, match=r"odd\.onnx: not a model that ONNX Runtime can open"):
        Derainer(tmp_path / "odd.onnx")


@pytest.mark.parametrize("odd", [b"\x0bainy", b"\x0aainy", b"r\xc2\x85ny"])
@pytest.mark.parametrize("times", [1, -1], ids=["only where it is used", "everywhere"])
def test_names_with_line_ends_are_refused_in_one_line(tmp_path, tiny_model, odd, times):
    (tmp_path / "odd.onnx").write_bytes(tiny_model.read_bytes().replace(b"rainy", odd, times))
    with pytest.raises(UnrainError, match=r"odd\.onnx: (not a model that|has inputs)") as caught:
        Derainer(tmp_path / "odd.onnx")
    assert len(str(caught.value).splitlines()) == 1


def test_a_model_that_never_ends_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("unrain.engine.network._TRIAL_SECONDS", 0.2)
    broken(tmp_path / "loop.onnx", add_loop)
    with pytest.raises(UnrainError, match=r"loop\.onnx: needs more than 0\.2 s for 64 x 64 pixels"):
        Derainer(tmp_path / "loop.onnx")
    assert not [thread for thread in threading.enumerate() if thread.name == "unrain-network"]


INTERRUPTED = """
import signal, sys, threading
import numpy as np
from unrain import Derainer
from unrain.engine.onnx_runtime import OnnxRuntimeEngine

# A shell that starts the tests in the background has them ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
OnnxRuntimeEngine._try = lambda self: None
derainer = Derainer(sys.argv[1], device="cpu")
print("open", flush=True)
try:
    derainer(np.zeros((32, 32, 3), np.uint8))
except KeyboardInterrupt:
    print([thread.name for thread in threading.enumerate() if thread.name == "unrain-network"])
"""


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_an_interrupt_ends_a_network_that_never_ends(tmp_path):
    broken(tmp_path / "loop.onnx", add_loop)
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "loop.onnx")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "open\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[0] == "[]\n"
    assert process.returncode == 0


def test_a_network_runs_in_other_threads_too(tiny_model):
    derainer, rainy = Derainer(tiny_model), natural(32, 32)
    with ThreadPoolExecutor(1) as threads:
        assert (threads.submit(derainer, rainy).result() == derainer(rainy)).all()


def test_onnx_runtime_prints_nothing_of_its_own(tmp_path, capfd):
    def change(network):
        del network.graph.node[-1].input[1]

    def fails_when_it_runs(network):
        network.graph.initializer[2].float_data[:] = []
        network.graph.initializer[2].raw_data = np.array([1, 1, 7, 7], np.float32).tobytes()

    broken(tmp_path / "invalid.onnx", change)
    broken(tmp_path / "failing.onnx", fails_when_it_runs)
    for name in ("invalid", "failing"):
        with pytest.raises(UnrainError):
            Derainer(tmp_path / f"{name}.onnx")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("content", [b"", b"this is text, not a network"])
def test_a_file_that_is_no_model_is_refused(tmp_path, content):
    (tmp_path / "text.onnx").write_bytes(content)
    with pytest.raises(UnrainError, match=r"text\.onnx: not a model") as caught:
        Derainer(tmp_path / "text.onnx")
    assert "\n" not in str(caught.value)


def test_a_network_that_fails_says_where(tmp_path):
    def change(network):
        network.graph.initializer[0].dims[1] = 3
        network.graph.initializer[0].dims[0] = 6

    broken(tmp_path / "wrong.onnx", change)
    with pytest.raises(UnrainError, match=r"wrong\.onnx") as caught:
        Derainer(tmp_path / "wrong.onnx")(natural(32, 32))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("until", ["None", "1e-9"])
def test_a_big_picture_stays_within_bounds(tiny_model, until):
    """16 megapixels: 48 MB in, 48 MB out, 96 MB of estimate; the rest is tiles, Python and ONNX Runtime."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the peak of a process's own memory is read from /proc")
    # Not ru_maxrss: a child inherits the peak of the process that started it.
    program = (
        "import sys, numpy as np; from unrain.derainer import Derainer\n"
        "image = np.full((4000, 4000, 3), 100, np.uint8)\n"
        "Derainer(sys.argv[1], threads=1, until=eval(sys.argv[2]))(image)\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    command = [sys.executable, "-c", program, str(tiny_model), until]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) / 1024 < 700
