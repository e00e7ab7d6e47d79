"""Folder runs: nothing is overwritten, nothing is mixed up, a bad file stops nothing."""

import errno
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unrain import batch, files, image
from unrain.derainer import Derainer
from unrain.errors import UnrainError
from unrain.plan import Job, PlanError, make_plan


class Dimmer:
    """An engine that halves the light, so that results can be foretold."""

    multiple, halo, recursions, recursive = 1, 0, 1, False

    def step(self, rainy, estimate):
        return rainy * np.float32(0.5)


def dimmer():
    return Derainer(Dimmer())


def picture(path, value=200, size=(12, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, 7)).save(path)
    return path


def targets(plan):
    return {str(job.source): str(job.targets["derained"]) for job in plan.jobs}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder, so that paths are short."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ----------------------------------------------------------------------------------------------- planning


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (None, "in/a_derained.png"),
        ("out", "out/a_derained.png"),
        ("out/", "out/a_derained.png"),
        ("new.jpg", "new.jpg"),
        ("out/new.JPG", "out/new.JPG"),
        ("dotted.dir/", "dotted.dir/a_derained.png"),
        (".", "a_derained.png"),
    ],
)
def test_where_one_result_goes(here, output, expected):
    picture(here / "in" / "a.png")
    assert targets(make_plan(["in/a.png"], output)) == {"in/a.png": expected}


def test_an_existing_folder_may_have_a_dot(here):
    picture(here / "a.png")
    (here / "v1.0").mkdir()
    assert targets(make_plan(["a.png"], "v1.0")) == {"a.png": "v1.0/a_derained.png"}


def test_an_unknown_extension_is_refused(here):
    picture(here / "a.png")
    with pytest.raises(PlanError, match=r"new\.gif: extension \.gif: use one of \.avif"):
        make_plan(["a.png"], "new.gif")


def test_folders_keep_their_structure(here):
    for name in ("in/a.JPG", "in/deep/er/b.tiff", "in/.hidden/c.png", "in/._a.jpg", "in/text.txt"):
        picture(here / name) if not name.endswith("txt") else (here / name).write_text("no")
    assert targets(make_plan(["in"], "out")) == {
        "in/a.JPG": "out/a_derained.JPG",
        "in/deep/er/b.tiff": "out/deep/er/b_derained.tiff",
    }
    assert targets(make_plan(["in"]))["in/deep/er/b.tiff"] == "in/deep/er/b_derained.tiff"


def test_earlier_results_and_the_output_folder_are_left_out(here):
    for name in ("a.png", "a_derained.png", "a_rain.png", "a_compare.png", "out/z.png", "rain.png"):
        picture(here / name)
    assert list(targets(make_plan(["."], "out"))) == ["a.png", "rain.png"]
    assert "out/z.png" in targets(make_plan(["."]))


def test_a_pattern_that_caught_results_too(here):
    for name in ("a.png", "a_derained.png", "b_derained.png"):
        picture(here / name)
    plan = make_plan(["*.png"])
    # b_derained.png has no b.png beside it: somebody means that very file.
    assert list(targets(plan)) == ["a.png", "b_derained.png"]
    assert [(o.name, o.status, o.message) for o in plan.settled] == [
        ("a_derained.png", "skipped", "a result of a.png")
    ]


def test_extra_results_are_named_after_the_picture(here):
    picture(here / "a.jpg")
    (job,) = make_plan(["a.jpg"], rain_layer=True, compare=True).jobs
    assert {kind: str(path) for kind, path in job.targets.items()} == {
        "derained": "a_derained.jpg",
        "rain": "a_rain.png",
        "compare": "a_compare.jpg",
    }
    (job,) = make_plan(["a.jpg"], "clear.webp", rain_layer=True, compare=True).jobs
    assert str(job.targets["rain"]), str(job.targets["compare"]) == ("clear_rain.png", "clear_compare.webp")


def test_inputs_named_twice_are_run_once(here):
    picture(here / "in" / "a.png")
    assert len(make_plan(["in", "in/a.png", "./in/../in/a.png"]).jobs) == 1


def test_two_results_in_one_file_are_refused(here):
    picture(here / "one" / "a.png")
    picture(here / "two" / "a.png")
    with pytest.raises(PlanError, match=r"out/a_derained\.png: the result of both one/a\.png and two/a\.png"):
        make_plan(["one", "two"], "out")
    picture(here / "one" / "a.jpg")
    with pytest.raises(PlanError, match="the result of both"):
        make_plan(["one/a.jpg", "one/a.png"], "out", rain_layer=True)


@pytest.mark.parametrize("how", ["itself", "symlink", "hard link", "detour"])
def test_an_input_is_never_a_target(here, how):
    picture(here / "a.png")
    output = "a.png"
    if how == "symlink":
        (here / "b.png").symlink_to("a.png")
        output = "b.png"
    elif how == "hard link":
        os.link("a.png", "b.png")
        output = "b.png"
    elif how == "detour":
        output = f"../{here.name}/./a.png"
    with pytest.raises(PlanError, match=r"is the input a\.png"):
        make_plan(["a.png"], output)


def test_nor_is_another_input(here):
    picture(here / "in" / "a.png")
    picture(here / "out" / "a_derained.png", value=9)
    with pytest.raises(PlanError, match=r"out/a_derained\.png: is the input out/a_derained\.png"):
        make_plan(["in/a.png", "out/a_derained.png"], "out")


def test_streams(here):
    picture(here / "a.png")
    assert make_plan(["-"]).jobs == [Job(None, {})]
    assert make_plan(["-"], "-").jobs[0].to_stdout
    assert not make_plan(["-"], "x.png").jobs[0].to_stdout
    assert make_plan(["a.png"], "-").jobs[0].to_stdout
    for inputs, output, options, message in (
        (["-", "a.png"], None, {}, "cannot be mixed"),
        (["-"], "folder", {}, "a folder, but standard input has no name"),
        (["-"], None, {"compare": True}, "need a file name after -o"),
        (["a.png", "b.png"], "-", {}, "takes one picture"),
        ([], None, {}, "no input"),
    ):
        with pytest.raises(PlanError, match=message):
            make_plan(inputs, output, **options)


def test_several_inputs_need_a_folder(here):
    picture(here / "a.png")
    (here / "file").write_text("x")
    for inputs in (["a.png", "b.png"], ["."]):
        with pytest.raises(PlanError, match="file: a file, but there are several inputs"):
            make_plan(inputs, "file")


@pytest.mark.parametrize("output", ["one.jpg", "deep/one.TIF", "one.mp4"])
def test_several_results_in_one_file_are_refused(here, output):
    picture(here / "in" / "a.png")
    picture(here / "in" / "b.png")
    for inputs in (["in/a.png", "in/b.png"], ["in"]):
        with pytest.raises(PlanError, match=f"{output}: a file name, but there may be several results"):
            make_plan(inputs, output)
        assert make_plan(inputs, f"{output}/").jobs
    (here / output).mkdir(parents=True)
    assert make_plan(["in"], output).folder == Path(output)


def test_files_of_other_kinds_are_named(here):
    picture(here / "in" / "a.png")
    for name in ("b.HEIC", "c.jxl", "deep/d.dng", "e.gif", ".f.gif", "g_derained.gif", "notes.txt", "h.y4m"):
        (here / "in" / name).parent.mkdir(exist_ok=True)
        (here / "in" / name).write_bytes(b"x")
    plan = make_plan(["in"], "out")
    assert [str(job.source) for job in plan.jobs] == ["in/a.png"]
    assert sorted(map(str, plan.ignored)) == [
        "in/b.HEIC",
        "in/c.jxl",
        "in/deep/d.dng",
        "in/e.gif",
        "in/h.y4m",
    ]
    (here / "in" / "a.png").unlink()
    (outcome,) = make_plan(["in"], "out").settled
    assert outcome.message.endswith("; convert what is .dng .gif .heic .jxl .y4m first")


# ------------------------------------------------------------------------------------------------ running


def test_a_run_goes_on_after_a_bad_file(here):
    picture(here / "in" / "a.png")
    picture(here / "in" / "c.png")
    (here / "in" / "b.png").write_text("no picture")
    outcomes = list(batch.run(make_plan(["in", "gone.png"], "out"), dimmer))
    assert [outcome.status for outcome in outcomes] == ["derained", "failed", "derained", "failed"]
    assert outcomes[1].message.startswith("in/b.png: no picture in JPEG")
    assert outcomes[3].message == "gone.png: no such file, check the name"
    assert image.read(here / "out" / "c_derained.png").pixels[0, 0].tolist() == [100, 100, 4]
    assert sorted(path.name for path in (here / "out").iterdir()) == ["a_derained.png", "c_derained.png"]


def test_existing_results_are_kept(here):
    picture(here / "a.png")
    (here / "a_derained.png").write_bytes(b"mine")
    (outcome,) = batch.run(make_plan(["a.png"]), dimmer)
    assert outcome.status == "skipped"
    assert (here / "a_derained.png").read_bytes() == b"mine"
    # The comparison is not there yet, so only that is written.
    (outcome,) = batch.run(make_plan(["a.png"], compare=True), dimmer)
    assert [str(path) for path in outcome.written] == ["a_compare.png"]
    assert (here / "a_derained.png").read_bytes() == b"mine"
    (outcome,) = batch.run(make_plan(["a.png"]), dimmer, overwrite=True)
    assert image.read(here / "a_derained.png").pixels.shape == (8, 12, 3)


def test_no_model_is_loaded_for_nothing(here):
    picture(here / "a.png")
    picture(here / "a_derained.png")
    assert [o.status for o in batch.run(make_plan(["a.png"]), pytest.fail)] == ["skipped"]


def test_extra_results_show_what_happened(here):
    picture(here / "a.png")
    list(batch.run(make_plan(["a.png"], rain_layer=True, compare=True), dimmer))
    before, after = image.read(here / "a.png").pixels, image.read(here / "a_derained.png").pixels
    np.testing.assert_array_equal(image.read(here / "a_rain.png").pixels, before - after)
    both = image.read(here / "a_compare.png").pixels
    assert both.shape == (8, 12 + 2 + 12, 3)
    np.testing.assert_array_equal(both[:, :12], before)
    np.testing.assert_array_equal(both[:, 14:], after)
    assert (both[:, 12:14] == 255).all()


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "I;16"])
def test_alpha_depth_and_grey_go_through(here, mode):
    shape = (8, 12, len(Image.new(mode, (1, 1)).getbands()))
    channels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    Image.fromarray(channels.squeeze() if mode != "I;16" else channels[..., 0].astype(np.uint16) * 100).save(
        "a.png"
    )
    list(batch.run(make_plan(["a.png"], compare=True, rain_layer=True), dimmer))
    before, after = image.read(here / "a.png"), image.read(here / "a_derained.png")
    assert after.pixels.dtype == before.pixels.dtype
    np.testing.assert_allclose(after.pixels, before.pixels * 0.5, atol=1)
    if before.alpha is not None:
        np.testing.assert_array_equal(after.alpha, before.alpha)
    assert image.read(here / "a_compare.png").pixels.ndim == after.pixels.ndim
    assert image.read(here / "a_rain.png").pixels.dtype == before.pixels.dtype


def test_16_bit_colour_goes_through(here):
    pixels = np.random.default_rng(0).integers(0, 65536, (8, 12, 3), np.uint16)
    for name in ("a.png", "b.tif"):
        kind = image.FORMATS[name[1:]]
        (here / name).write_bytes(image.encode(image.Picture(pixels), kind)[0])
    list(batch.run(make_plan(["."]), dimmer))
    for name in ("a_derained.png", "b_derained.tif"):
        np.testing.assert_allclose(image.read(here / name).pixels, pixels * 0.5, atol=1)


def test_the_name_decides_the_format(here):
    picture(here / "a.png")
    list(batch.run(make_plan(["a.png"], "b.tif"), dimmer))
    assert image.read(here / "b.tif").format == "TIFF"
    # A JPEG that is called .png comes out as the PNG that its name promises; without a name, as what it was.
    picture(here / "j.jpg").rename(here / "j.png")
    (here / "k").write_bytes((here / "j.png").read_bytes())
    list(batch.run(make_plan(["j.png", "k"]), dimmer))
    assert image.read(here / "j_derained.png").format == "PNG"
    assert image.read(here / "k_derained").format == "JPEG"


def test_a_folder_without_pictures(here):
    (here / "in").mkdir()
    (here / "in" / "notes.txt").write_text("x")
    picture(here / "in" / "old_derained.png")
    (outcome,) = batch.run(make_plan(["in"]), dimmer)
    assert outcome.status == "failed"
    assert outcome.message.startswith("in: no picture or video in this folder")


def test_an_output_folder_that_cannot_be(here):
    picture(here / "in" / "a.png")
    (here / "file").write_text("x")
    # Below a file there is no folder, for root neither.
    with pytest.raises(UnrainError, match="file/out: cannot be written"):
        list(batch.run(make_plan(["in"], "file/out"), pytest.fail))
    (outcome,) = batch.run(make_plan(["in/a.png"], "file/out/x.png"), dimmer)
    assert (outcome.status, outcome.message[:8]) == ("failed", "file/out")


def test_an_output_folder_without_permission(here, monkeypatch):
    picture(here / "in" / "a.png")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UnrainError, match="out: may not be written here, choose another folder with -o"):
        list(batch.run(make_plan(["in"], "out"), dimmer))


def test_a_full_disk_stops_the_run(here, monkeypatch):
    for name in "abc":
        picture(here / "in" / f"{name}.png")
    real = os.fsync
    calls = []

    def second_fails(descriptor):
        calls.append(descriptor)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", second_fails)
    outcomes = list(batch.run(make_plan(["in"], "out"), dimmer))
    assert [outcome.status for outcome in outcomes] == ["derained", "failed"]
    assert "out/b_derained.png: no space left on the disk" in outcomes[1].message
    assert [path.name for path in (here / "out").iterdir()] == ["a_derained.png"]


def test_what_was_written_is_named_when_another_result_fails(here):
    Image.new("RGB", (9000, 4), (200, 100, 7)).save("a.webp")
    (outcome,) = batch.run(make_plan(["a.webp"], rain_layer=True, compare=True), dimmer)
    assert outcome.status == "failed"
    assert outcome.message == (
        "a_compare.webp: 18036 x 4 pixels are too many for WEBP, name an output in PNG or TIFF; "
        "a_derained.webp and a_rain.png written"
    )
    assert outcome.written == (Path("a_derained.webp"), Path("a_rain.png"))
    assert all(path.is_file() for path in outcome.written)


def test_a_disk_that_is_full_in_the_middle_of_a_picture(here, monkeypatch):
    for name in "ab":
        picture(here / f"{name}.png")
    write = files.write

    def second_fails(data, path):
        if path.name == "a_rain.png":
            raise files.DiskFullError(f"{path}: no space left on the disk")
        write(data, path)

    monkeypatch.setattr(files, "write", second_fails)
    plan = make_plan(["a.png", "b.png"], rain_layer=True, compare=True)
    (outcome,) = batch.run(plan, dimmer)
    assert outcome.message == "a_rain.png: no space left on the disk; a_derained.png written"
    assert outcome.written == (Path("a_derained.png"),)


def test_a_failure_of_the_network_names_the_picture(here):
    class Broken(Dimmer):
        def step(self, rainy, estimate):
            raise UnrainError("too large for me")

    picture(here / "a.png")
    (outcome,) = batch.run(make_plan(["a.png"]), lambda: Derainer(Broken()))
    assert outcome.message == "a.png: too large for me"


def test_too_little_memory(here, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    picture(here / "a.png")
    monkeypatch.setattr(Derainer, "derain", fail)
    (outcome,) = batch.run(make_plan(["a.png"]), dimmer)
    assert outcome.message == "a.png: not enough memory, try a smaller --tile"


def test_progress_and_notes(here):
    Image.new("CMYK", (16, 16)).save("a.jpg")
    seen = []
    (outcome,) = batch.run(
        make_plan(["a.jpg"]), dimmer, progress=lambda job, *step: seen.append((job.name, *step))
    )
    assert seen == [("a.jpg", 1, 1)]
    assert outcome.notes == ("CMYK is converted to RGB",)


@pytest.mark.skipif(sys.platform == "win32", reason="names of any bytes")
def test_names_of_any_bytes(here):
    name = os.fsdecode(b"caf\xe9 [1].png")
    picture(here / "x.png").rename(here / name)
    assert [o.status for o in batch.run(make_plan([name]), dimmer)] == ["derained"]
    assert (here / os.fsdecode(b"caf\xe9 [1]_derained.png")).exists()


@pytest.mark.skipif(sys.platform == "win32", reason="/dev/null")
def test_devices_are_written_to(here):
    picture(here / "a.png")
    (outcome,) = batch.run(make_plan(["a.png"], "/dev/null"), dimmer)
    assert outcome.status == "derained"
    assert not os.path.isfile("/dev/null")  # noqa: PTH113
