"""Sets as their downloads lay them out, on small made-up folders."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from unrain.errors import UnrainError
from unrain.lab.data import suites
from unrain.lab.data.suites import find_suites, open_suite, published
from unrain.lab.metrics.psnr_ssim import psnr


def save(path, light=0, size=(20, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (light, light, light)).save(path)


@pytest.fixture
def three(monkeypatch):
    """As if every set that is known had three pictures."""
    for name, known in list(suites.PUBLISHED.items()):
        monkeypatch.setitem(suites.PUBLISHED, name, replace(known, count=3, input_psnr=None))


# Rainy pictures are light 100 + i, clean ones 10 + i; the suite, its files, and where the partner is.
LAYOUTS = {
    "Rain100L": (
        "rain_data_test_Light/rain/X2/norain-00{i}x2.png",
        "rain_data_test_Light/norain/norain-00{i}.png",
    ),
    "Rain100H": ("rainy/rain-00{i}.png", "norain-00{i}.png"),
    "rain100h/test": ("rain/00{i}.png", "clean/00{i}.png"),
    "Rain12": ("00{i}_in.png", "00{i}_GT.png"),
    "Rain200L": ("test/input/{i}.png", "test/target/{i}.png"),
    "Rain200H": ("test/rain/X2/norain-{i}x2.png", "test/norain/norain-{i}.png"),
    "Rain800": ("test/rain/rain-00{i}.png", "test/norain/norain-00{i}.png"),
    "Rain1400": ("testing/rainy_image/901_{i}.jpg", "testing/ground_truth/901.jpg"),
    "Test1200": ("input/{i}.png", "target/{i}.png"),
    "SPA-Data": ("Testing/real_test_1000/rain/00{i}.png", "Testing/real_test_1000/gt/00{i}gt.png"),
    "mine": ("input/{i}.jpg", "gt/{i}.png"),
}


@pytest.mark.parametrize("suite", LAYOUTS)
def test_pairs_are_found_as_downloaded(tmp_path, three, suite):
    rain, clean = LAYOUTS[suite]
    for i in (1, 2, 3):
        save(tmp_path / suite / rain.format(i=i), 100 + i)
        save(tmp_path / suite / clean.format(i=i), 10 + i * ("{i}" in clean))
    # What a download has besides does no harm.
    (tmp_path / suite / "readme.txt").write_text("text")
    save(tmp_path / suite / "results" / "1.png")
    found = open_suite(tmp_path, suite)
    assert (found.kind, len(found)) == ("pairs", 3)
    for i, pair in enumerate(found, 1):
        assert str(i) in pair.name
        assert abs(int(pair.rainy.mean()) - 100 - i) <= 1
        assert abs(int(pair.clean.mean()) - 10 - i * ("{i}" in clean)) <= 1


@pytest.mark.parametrize(("suite", "left"), [("DID-MDN-test", "rainy"), ("Rain800/test_syn", "clean")])
def test_pictures_that_hold_both_sides_are_cut(tmp_path, three, suite, left):
    both = np.zeros((10, 40, 3), np.uint8)
    both[:, :20] = 200
    (tmp_path / suite).mkdir(parents=True)
    for i in range(3):
        Image.fromarray(both).save(tmp_path / suite / f"{i}.png")
    found = open_suite(tmp_path, suite.partition("/")[0])
    for pair in found:
        assert pair.rainy.shape == pair.clean.shape == (10, 20, 3)
        assert ((pair.rainy if left == "rainy" else pair.clean) == 200).all()
    save(tmp_path / suite / "1.png", size=(41, 10))
    with pytest.raises(UnrainError, match=r"1\.png: 41x10 is no rainy and clean picture side by side"):
        open_suite(tmp_path, suite)


def test_what_is_known_of_the_sets():
    assert published("rain100l/test").input_psnr == 26.90
    assert published("Rain100H").input_psnr == 13.56
    counts = {name: published(name).count for name in ("Rain12", "Rain200L", "Rain200H/test", "rain800/test")}
    assert counts == {"Rain12": 12, "Rain200L": 200, "Rain200H/test": 200, "rain800/test": 100}
    counts = {
        name: published(name).count for name in ("rain1400", "Test1200", "SPA-Data", "deep/rain12/test")
    }
    assert counts == {"rain1400": 1400, "Test1200": 1200, "SPA-Data": 1000, "deep/rain12/test": 12}
    assert published("rain100l/train") is None
    assert published("mine/test") is None


@pytest.mark.parametrize(
    ("suite", "count", "words"),
    [
        ("rain12", 11, r"rain12: 11 pairs, Rain12 has 12; complete it, or call its folder something else"),
        ("Rain100L", 200, r"200 pairs, Rain100L has 100 \(the authors' newer version .* called Rain200L"),
        ("Rain200H", 100, r"100 pairs, Rain200H has 200 \(the older version of the set, Rain100H\)"),
        ("rain800/test", 98, r"98 pairs, Rain800 has 100 \(MPRNet's Test100 has 98"),
    ],
)
def test_wrong_counts_and_other_versions_are_named(tmp_path, suite, count, words):
    for i in range(count):
        for side in ("rain", "clean"):
            save(tmp_path / suite / side / f"{i}.png", size=(2, 2))
    with pytest.raises(UnrainError, match=words) as caught:
        open_suite(tmp_path, suite)
    assert "\n" not in str(caught.value)


def test_a_set_whose_input_scores_otherwise_is_another_version(tmp_path, monkeypatch):
    known = suites.Published("Rain100L", 1, 26.90)
    monkeypatch.setitem(suites.PUBLISHED, "rain100l", known)
    save(tmp_path / "rain100l" / "rain" / "1.png", 60)
    save(tmp_path / "rain100l" / "clean" / "1.png", 50)
    suite = open_suite(tmp_path, "rain100l")
    (pair,) = suite
    with pytest.raises(UnrainError, match=r"a PSNR of 29\.\d+ dB, those of Rain100L 26\.90: this is another"):
        suite.check_input(psnr(pair.rainy, pair.clean))
    suite.check_input(26.8951)
    replace(suite, published=None).check_input(1)


def test_the_input_is_checked_before_anything_is_measured(tmp_path, monkeypatch):
    from unrain.lab.bench import run

    monkeypatch.setitem(suites.PUBLISHED, "rain100l", suites.Published("Rain100L", 1, 26.90))
    for side, light in (("rain", 60), ("clean", 50)):
        save(tmp_path / "rain100l" / side / "1.png", light)
    for inputs in (False, True):
        with pytest.raises(UnrainError, match="another version of the set"):
            list(run.run([run.INPUT], [(tmp_path, "rain100l", False)], inputs=inputs))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            ["rain/1.png", "rain/2.png", "clean/1.png"],
            r"2\.png: no clean partner of that name \(1 without one",
        ),
        (
            ["rain/1.png", "clean/1.png", "clean/2.png"],
            r"2\.png: no rainy partner of that name \(1 without one",
        ),
        (
            ["rain/1.png", "clean/1.png", "clean/1.jpg"],
            r"1\.png: two clean pictures are called 1, remove one",
        ),
        (["rain/1.png", "rain/1.jpg", "clean/1.png"], r"1\.png: two rainy pictures are called 1, remove one"),
        (["rain/1.png", "clean/a/1.txt"], r"clean: no pictures in it"),
        (
            ["one/1.png", "two/1.png"],
            r"needs a sub-folder called one of rain, .* or pictures and no sub-folders",
        ),
    ],
)
def test_partners_that_do_not_match_are_named(tmp_path, files, words):
    for file in files:
        path = tmp_path / "mine" / file
        if path.suffix == ".txt":
            path.parent.mkdir(parents=True)
            path.write_text("text")
        else:
            save(path)
    with pytest.raises(UnrainError, match=words):
        open_suite(tmp_path, "mine")


def test_sides_are_turned_before_their_sizes_are_compared(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for side in ("rain", "clean"):
        (tmp_path / "mine" / side).mkdir(parents=True)
    Image.new("RGB", (60, 40)).save(tmp_path / "mine" / "rain" / "1.jpg", exif=exif)
    Image.new("RGB", (40, 60)).save(tmp_path / "mine" / "clean" / "1.png")
    (pair,) = open_suite(tmp_path, "mine")
    assert pair.rainy.shape == pair.clean.shape == (60, 40, 3)


def test_one_name_in_two_sub_folders_makes_two_pairs(tmp_path):
    for name in ("a/1", "b/1"):
        for side in ("rain", "clean"):
            save(tmp_path / "mine" / side / f"{name}.png")
    assert open_suite(tmp_path, "mine").names == ("a/1", "b/1")


def test_unequal_sizes_and_broken_pictures_are_named(tmp_path):
    save(tmp_path / "mine" / "rain" / "1.png", size=(20, 16))
    save(tmp_path / "mine" / "clean" / "1.png", size=(16, 20))
    with pytest.raises(
        UnrainError, match=r"1\.png: 20x16, its clean partner 16x20; partners must have one size"
    ):
        open_suite(tmp_path, "mine")
    (tmp_path / "mine" / "clean" / "1.png").write_text("text")
    with pytest.raises(UnrainError, match=r"clean.1\.png: no picture in JPEG, PNG"):
        open_suite(tmp_path, "mine")


def test_known_sets_need_partners(tmp_path):
    for i in range(12):
        save(tmp_path / "rain12" / f"{i}.png")
    with pytest.raises(
        UnrainError, match="12 pictures without partners; Rain12 has a rainy and a clean side"
    ):
        open_suite(tmp_path, "rain12")
    with pytest.raises(UnrainError, match="none: no such folder"):
        open_suite(tmp_path, "none")
    with pytest.raises(UnrainError, match="holds none of rain100l/test"):
        find_suites(tmp_path, ())


def test_real_rain_and_dry_photographs_are_told_apart(tmp_path):
    save(tmp_path / "real" / "eval" / "1.jpg", 7)
    save(tmp_path / "photos" / "1.jpg", 7)
    save(tmp_path / "photos" / "deep" / "1.jpg", 8)
    assert open_suite(tmp_path, "real/eval").kind == "real"
    found = open_suite(tmp_path, "photos", real=True)
    assert (found.kind, found.names) == ("real", ("1", "deep/1"))
    save(tmp_path / "photos" / "1.png")
    with pytest.raises(UnrainError, match="another picture has that name with another extension"):
        open_suite(tmp_path, "photos", real=True)


def test_a_suites_fingerprint_changes_with_its_files(tmp_path):
    save(tmp_path / "photos" / "1.png", 7)
    before = open_suite(tmp_path, "photos").fingerprint
    assert open_suite(tmp_path, "photos").fingerprint == before
    save(tmp_path / "photos" / "1.png", 8)
    assert open_suite(tmp_path, "photos").fingerprint != before


def test_a_packed_set_is_not_taken_for_photographs(tmp_path):
    """Its source pictures, both sides in one, lie in the folder that has the set's name."""
    both = np.random.default_rng(0).integers(0, 256, (16, 40, 3), dtype=np.uint8)
    folder = tmp_path / "set" / "test"
    folder.mkdir(parents=True)
    Image.fromarray(both).save(folder / "1.png")
    row = {"set": "set/test", "name": "1", "kind": "side", "rain": "set/test/1.png"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
    (pair,) = open_suite(tmp_path, "set/test")
    assert (pair.clean == both[:, :20]).all()
    assert (pair.rainy == both[:, 20:]).all()
