"""Folder runs: nothing is overwritten, nothing is mixed up, a bad file stops nothing."""

import errno
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toys import flat_picture
from unrain import batch, files, image
from unrain.derainer import Derainer
from unrain.errors import UnrainError
from unrain.plan import make_plan


class Dimmer:
    """An engine that halves the light, so that results can be foretold."""

    multiple, halo, recursions, recursive, levels = 1, 0, 1, False, 1

    def step(self, rainy, estimate):
        return rainy * np.float32(0.5)


def dimmer():
    return Derainer(Dimmer())


def test_a_run_continues_after_a_bad_file(cwd):
    flat_picture(cwd / "in" / "a.png")
    flat_picture(cwd / "in" / "c.png")
    (cwd / "in" / "b.png").write_text("no picture")
    outcomes = list(batch.run(make_plan(["in", "gone.png"], "out"), dimmer))
    assert [outcome.status for outcome in outcomes] == ["derained", "failed", "derained", "failed"]
    assert outcomes[1].message.startswith("in/b.png: no picture in JPEG")
    assert outcomes[3].message == "gone.png: no such file, check the name"
    assert image.read(cwd / "out" / "c_derained.png").pixels[0, 0].tolist() == [100, 100, 4]
    assert sorted(path.name for path in (cwd / "out").iterdir()) == ["a_derained.png", "c_derained.png"]


def test_existing_results_are_kept(cwd):
    flat_picture(cwd / "a.png")
    (cwd / "a_derained.png").write_bytes(b"mine")
    (outcome,) = batch.run(make_plan(["a.png"]), dimmer)
    assert outcome.status == "skipped"
    assert (cwd / "a_derained.png").read_bytes() == b"mine"
    # The comparison is not there yet, so only that is written.
    (outcome,) = batch.run(make_plan(["a.png"], compare=True), dimmer)
    assert [str(path) for path in outcome.written] == ["a_compare.png"]
    assert (cwd / "a_derained.png").read_bytes() == b"mine"
    (outcome,) = batch.run(make_plan(["a.png"]), dimmer, batch.Settings(overwrite=True))
    assert image.read(cwd / "a_derained.png").pixels.shape == (8, 12, 3)


def test_no_model_is_loaded_for_nothing(cwd):
    flat_picture(cwd / "a.png")
    flat_picture(cwd / "a_derained.png")
    assert [o.status for o in batch.run(make_plan(["a.png"]), pytest.fail)] == ["skipped"]


def test_extra_results_show_what_happened(cwd):
    flat_picture(cwd / "a.png")
    list(batch.run(make_plan(["a.png"], rain_layer=True, compare=True), dimmer))
    before, after = image.read(cwd / "a.png").pixels, image.read(cwd / "a_derained.png").pixels
    np.testing.assert_array_equal(image.read(cwd / "a_rain.png").pixels, before - after)
    both = image.read(cwd / "a_compare.png").pixels
    assert both.shape == (8, 12 + 2 + 12, 3)
    np.testing.assert_array_equal(both[:, :12], before)
    np.testing.assert_array_equal(both[:, 14:], after)
    assert (both[:, 12:14] == 255).all()


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "I;16"])
def test_alpha_depth_and_grey_go_through(cwd, mode):
    shape = (8, 12, len(Image.new(mode, (1, 1)).getbands()))
    channels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    Image.fromarray(channels.squeeze() if mode != "I;16" else channels[..., 0].astype(np.uint16) * 100).save(
        "a.png"
    )
    list(batch.run(make_plan(["a.png"], compare=True, rain_layer=True), dimmer))
    before, after = image.read(cwd / "a.png"), image.read(cwd / "a_derained.png")
    assert after.pixels.dtype == before.pixels.dtype
    np.testing.assert_allclose(after.pixels, before.pixels * 0.5, atol=1)
    if before.alpha is not None:
        np.testing.assert_array_equal(after.alpha, before.alpha)
    assert image.read(cwd / "a_compare.png").pixels.ndim == after.pixels.ndim
    assert image.read(cwd / "a_rain.png").pixels.dtype == before.pixels.dtype


def test_16_bit_colour_goes_through(cwd):
    pixels = np.random.default_rng(0).integers(0, 65536, (8, 12, 3), np.uint16)
    for name in ("a.png", "b.tif"):
        kind = image.FORMATS[name[1:]]
        (cwd / name).write_bytes(image.encode(image.Picture(pixels), kind)[0])
    list(batch.run(make_plan(["."]), dimmer))
    for name in ("a_derained.png", "b_derained.tif"):
        np.testing.assert_allclose(image.read(cwd / name).pixels, pixels * 0.5, atol=1)


def test_the_name_decides_the_format(cwd):
    flat_picture(cwd / "a.png")
    list(batch.run(make_plan(["a.png"], "b.tif"), dimmer))
    assert image.read(cwd / "b.tif").format == "TIFF"
    # A JPEG that is called .png comes out as the PNG that its name promises; without a name, as what it was.
    flat_picture(cwd / "j.jpg").rename(cwd / "j.png")
    (cwd / "k").write_bytes((cwd / "j.png").read_bytes())
    list(batch.run(make_plan(["j.png", "k"]), dimmer))
    assert image.read(cwd / "j_derained.png").format == "PNG"
    assert image.read(cwd / "k_derained").format == "JPEG"


def test_a_folder_without_pictures(cwd):
    (cwd / "in").mkdir()
    (cwd / "in" / "notes.txt").write_text("x")
    flat_picture(cwd / "in" / "old_derained.png")
    (outcome,) = batch.run(make_plan(["in"]), dimmer)
    assert outcome.status == "failed"
    assert outcome.message.startswith("in: no picture or video in this folder")


def test_an_output_folder_that_cannot_be(cwd):
    flat_picture(cwd / "in" / "a.png")
    (cwd / "file").write_text("x")
    # Below a file there is no folder, for root neither.
    with pytest.raises(UnrainError, match="file/out: cannot be written"):
        list(batch.run(make_plan(["in"], "file/out"), pytest.fail))
    (outcome,) = batch.run(make_plan(["in/a.png"], "file/out/x.png"), dimmer)
    assert (outcome.status, outcome.message[:8]) == ("failed", "file/out")


def test_an_output_folder_without_permission(cwd, monkeypatch):
    flat_picture(cwd / "in" / "a.png")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UnrainError, match="out: may not be written here, choose another folder with -o"):
        list(batch.run(make_plan(["in"], "out"), dimmer))


def test_a_full_disk_stops_the_run(cwd, monkeypatch):
    for name in "abc":
        flat_picture(cwd / "in" / f"{name}.png")
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
    assert [path.name for path in (cwd / "out").iterdir()] == ["a_derained.png"]


def test_what_was_written_is_named_when_another_result_fails(cwd):
    Image.new("RGB", (9000, 4), (200, 100, 7)).save("a.webp")
    (outcome,) = batch.run(make_plan(["a.webp"], rain_layer=True, compare=True), dimmer)
    assert outcome.status == "failed"
    assert outcome.message == (
        "a_compare.webp: 18036 x 4 pixels are too many for WEBP, name an output in PNG or TIFF; "
        "a_derained.webp and a_rain.png written"
    )
    assert outcome.written == (Path("a_derained.webp"), Path("a_rain.png"))
    assert all(path.is_file() for path in outcome.written)


def test_a_disk_that_is_full_in_the_middle_of_a_picture(cwd, monkeypatch):
    for name in "ab":
        flat_picture(cwd / f"{name}.png")
    write = files.write

    def second_fails(data, path, **options):
        if path.name == "a_rain.png":
            raise files.DiskFullError(f"{path}: no space left on the disk")
        write(data, path, **options)

    monkeypatch.setattr(files, "write", second_fails)
    plan = make_plan(["a.png", "b.png"], rain_layer=True, compare=True)
    (outcome,) = batch.run(plan, dimmer)
    assert outcome.message == "a_rain.png: no space left on the disk; a_derained.png written"
    assert outcome.written == (Path("a_derained.png"),)


def test_a_failure_of_the_network_names_the_picture(cwd):
    class Broken(Dimmer):
        def step(self, rainy, estimate):
            raise UnrainError("too large for me")

    flat_picture(cwd / "a.png")
    (outcome,) = batch.run(make_plan(["a.png"]), lambda: Derainer(Broken()))
    assert outcome.message == "a.png: too large for me"


def test_too_little_memory(cwd, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    flat_picture(cwd / "a.png")
    monkeypatch.setattr(Derainer, "derain", fail)
    (outcome,) = batch.run(make_plan(["a.png"]), dimmer)
    assert outcome.message == "a.png: not enough memory, try a smaller --tile"


def test_progress_and_notes(cwd):
    Image.new("CMYK", (16, 16)).save("a.jpg")
    seen = []
    (outcome,) = batch.run(
        make_plan(["a.jpg"]), dimmer, progress=lambda job, *step: seen.append((job.name, *step))
    )
    assert seen == [("a.jpg", 1, 1)]
    assert outcome.notes == ("CMYK is converted to RGB",)


@pytest.mark.skipif(sys.platform == "win32", reason="names of any bytes")
def test_names_of_any_bytes(cwd):
    name = os.fsdecode(b"caf\xe9 [1].png")
    flat_picture(cwd / "x.png").rename(cwd / name)
    assert [o.status for o in batch.run(make_plan([name]), dimmer)] == ["derained"]
    assert (cwd / os.fsdecode(b"caf\xe9 [1]_derained.png")).exists()


@pytest.fixture
def busy(monkeypatch):
    """What does something while a picture is derained."""

    def during(act):
        real = Derainer.derain
        monkeypatch.setattr(Derainer, "derain", lambda *args, **options: (act(), real(*args, **options))[1])

    return during


def test_a_result_that_appears_meanwhile_is_kept(cwd, busy):
    flat_picture(cwd / "in" / "a.png")
    flat_picture(cwd / "in" / "b.png")
    mine = cwd / "in" / "a_derained.png"
    busy(lambda: mine.write_bytes(b"mine"))
    outcomes = list(batch.run(make_plan(["in"]), dimmer))
    assert [outcome.status for outcome in outcomes] == ["failed", "derained"]
    assert outcomes[0].message == (
        "in/a_derained.png: appeared while this run was busy and is kept, --overwrite replaces it"
    )
    assert mine.read_bytes() == b"mine"
    (outcome,) = batch.run(make_plan(["in/a.png"]), dimmer, batch.Settings(overwrite=True))
    assert outcome.status == "derained"
    assert image.read(mine).pixels.shape == (8, 12, 3)


@pytest.mark.skipif(sys.platform == "win32", reason="links")
def test_a_link_that_appears_meanwhile_is_not_followed(cwd, busy):
    flat_picture(cwd / "a.png")
    (cwd / "precious").write_bytes(b"precious")
    busy(lambda: (cwd / "a_derained.png").symlink_to("precious"))
    (outcome,) = batch.run(make_plan(["a.png"]), dimmer)
    assert outcome.status == "failed"
    assert (cwd / "precious").read_bytes() == b"precious"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names")
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_pipes_and_devices_are_no_pictures(cwd, make):
    flat_picture(cwd / "in" / "b.png")
    make(cwd / "in" / "a.png")
    outcomes = list(batch.run(make_plan(["in"]), dimmer))
    assert [outcome.status for outcome in outcomes] == ["failed", "derained"]
    assert outcomes[0].message == "in/a.png: a pipe or a device, not a file: save it to a file first"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names")
def test_a_pipe_in_the_place_of_a_result_is_in_the_way(cwd):
    flat_picture(cwd / "a.png")
    os.mkfifo(cwd / "a_derained.png")
    (outcome,) = batch.run(make_plan(["a.png"]), dimmer)
    assert outcome.status == "skipped"
    os.mkfifo(cwd / "pipe")
    (outcome,) = batch.run(make_plan(["a.png"], "pipe"), dimmer)
    assert outcome.message == "pipe: cannot be written (No such device or address), choose another with -o"


def test_a_file_with_more_bytes_than_pixels_take(cwd):
    with (cwd / "a.png").open("wb") as file:
        file.truncate(1 << 40)
    (outcome,) = batch.run(make_plan(["a.png"]), dimmer)
    assert outcome.message.startswith("a.png: larger than 3,267,108,864 bytes, more than 400,000,000 pixels")


def test_what_a_killed_run_left_is_removed_also_where_nothing_is_written(cwd, abandoned):
    flat_picture(cwd / "in" / "a.png")
    flat_picture(cwd / "in" / "a_derained.png")
    left = abandoned(cwd / "in")
    assert [outcome.status for outcome in batch.run(make_plan(["in"]), dimmer)] == ["skipped"]
    assert not left.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="/dev/null")
def test_devices_are_written_to(cwd):
    flat_picture(cwd / "a.png")
    (outcome,) = batch.run(make_plan(["a.png"], "/dev/null"), dimmer)
    assert outcome.status == "derained"
    assert not os.path.isfile("/dev/null")  # noqa: PTH113
