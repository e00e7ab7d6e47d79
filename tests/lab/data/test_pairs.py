import json

import numpy as np
import pytest
from PIL import Image

from toys import SHARED

torch = pytest.importorskip("torch")
from unrain.errors import UnrainError  # noqa: E402
from unrain.image import size_of  # noqa: E402
from unrain.lab.data.batches import Batches, Source, Unpaired, upright_lines  # noqa: E402
from unrain.lab.data.pairs import Pair, pairs, photographs, rain_layers, read  # noqa: E402
from unrain.lab.data.rain import RainMaker  # noqa: E402
from unrain.lab.training.stage import Stage, stage_at  # noqa: E402

DATA = SHARED / "data"


def save(path, value=0, size=(20, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(value)
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)


def test_partners_are_matched_by_name_and_not_by_order(tmp_path):
    for i, name in enumerate(("10", "9", "100")):
        save(tmp_path / "set" / "rain" / f"rain-{name}.png", i)
        save(tmp_path / "set" / "norain" / f"norain-{name}.png", i)
    found = pairs(tmp_path, "set")
    assert [pair.name for pair in found] == ["10", "100", "9"]
    assert all((pair.rainy == pair.clean).all() for pair in found)


def test_a_missing_partner_is_named(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / "set" / "input" / f"{name}.png")
    save(tmp_path / "set" / "target" / "a.png")
    with pytest.raises(UnrainError, match=r"b\.png: no clean partner"):
        pairs(tmp_path, "set")


def test_partners_of_unequal_size_are_named(tmp_path):
    save(tmp_path / "set" / "rain" / "a.png")
    save(tmp_path / "set" / "clean" / "a.png", size=(21, 16))
    with pytest.raises(UnrainError, match=r"a\.png: 20x16, its clean partner 21x16"):
        pairs(tmp_path, "set")


def test_missing_folders_and_broken_files_are_named(tmp_path):
    with pytest.raises(UnrainError, match="nowhere: no such folder"):
        pairs(tmp_path, "nowhere")
    save(tmp_path / "set" / "rain" / "a.png")
    with pytest.raises(UnrainError, match=r"needs a sub-folder called one of rain, .* one of clean"):
        pairs(tmp_path, "set")
    (tmp_path / "photos").mkdir()
    with pytest.raises(UnrainError, match="photos: no pictures"):
        photographs(tmp_path, ("photos",))
    (tmp_path / "photos" / "x.jpg").write_text("no picture")
    with pytest.raises(UnrainError, match=r"x\.jpg: no picture in JPEG, PNG"):
        photographs(tmp_path, ("photos",))


def test_large_photographs_are_reduced_unless_their_native_size_is_asked_for(tmp_path):
    random = np.random.default_rng(0)
    large = random.integers(256, size=(1100, 1400, 3), dtype=np.uint8)
    Image.fromarray(large).save(tmp_path / "1.png", compress_level=0)
    (reduced,) = photographs(tmp_path, (".",))
    assert reduced.shape == (550, 700, 3)
    (native,) = photographs(tmp_path, (".",), native=True)
    np.testing.assert_array_equal(native, large)
    # Several sources share them, and what has changed is read again.
    assert photographs(tmp_path, (".",), native=True)[0] is native
    Image.fromarray(255 - large).save(tmp_path / "1.png", compress_level=0)
    assert photographs(tmp_path, (".",), native=True)[0] is not native


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(tmp_path, suffix, orientation):
    """A camera that is held sideways stores its picture sideways, and says so in EXIF."""
    path = tmp_path / f"1.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.new("RGB", (60, 40))
    stored.paste((200, 200, 200), (0, 0, 20, 20))
    stored.save(path, exif=exif)
    picture = read(path)
    assert picture.shape == ((60, 40, 3) if orientation >= 5 else (40, 60, 3))
    assert size_of(path) == picture.shape[1::-1]
    # The light corner stood at the upper left of what was stored.
    bottom = orientation in (3, 4, 7, 8)
    right = orientation in (2, 3, 6, 7)
    assert picture[-5 if bottom else 5, -5 if right else 5].min() > 190
    (upright,) = photographs(tmp_path, (".",))
    np.testing.assert_array_equal(upright, picture)


def test_sixteen_bits_are_rounded_and_grey_is_repeated(tmp_path):
    values = np.array([[0, 128, 129, 257], [32896, 40000, 65406, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "1.png")
    picture = read(tmp_path / "1.png")
    assert (picture.dtype, picture.shape) == (np.uint8, (2, 4, 3))
    for channel in range(3):
        np.testing.assert_array_equal(picture[..., channel], np.rint(values / 257))
    (layer,) = rain_layers(tmp_path, (".",))
    np.testing.assert_array_equal(layer, np.rint(values / 257))


def test_pairs_of_one_name_in_two_sub_folders_are_two_pairs(tmp_path):
    for i, name in enumerate(("a/1", "b/1")):
        save(tmp_path / "set" / "rain" / f"{name}.png", i)
        save(tmp_path / "set" / "clean" / f"{name}.png", i)
    found = pairs(tmp_path, "set")
    assert [pair.name for pair in found] == ["a/1", "b/1"]
    assert all((pair.rainy == pair.clean).all() for pair in found)
    assert not (found[0].clean == found[1].clean).all()
    (tmp_path / "set" / "clean" / "b" / "1.png").unlink()
    with pytest.raises(UnrainError, match=r"b.1\.png: no clean partner of that name \(1 without one"):
        pairs(tmp_path, "set")
    # One clean picture for several kinds of rain.
    (tmp_path / "set" / "clean" / "a" / "1.png").rename(tmp_path / "set" / "clean" / "1.png")
    assert [pair.name for pair in pairs(tmp_path, "set")] == ["a/1", "b/1"]


@pytest.mark.parametrize(
    ("rain", "clean"),
    [
        ("rain/X2/norain-{}x2.png", "norain/norain-{}.png"),  # the authors' Rain100
        ("rainy/rain-{}.png", "norain-{}.png"),  # PReNet's
        ("{}_in.png", "{}_GT.png"),
        ("rainy_image/901_{}.jpg", "ground_truth/901.jpg"),
        ("rain/{}.jpg", "clean/{}_derained.jpg"),  # what unrain makes of the rainy ones
    ],
)
def test_downloads_are_trained_on_as_they_are(tmp_path, rain, clean):
    for i in (1, 2):
        save(tmp_path / "set" / rain.format(i), i)
        save(tmp_path / "set" / clean.format(i), i)
    assert [pair.name.removeprefix("901_") for pair in pairs(tmp_path, "set")] == ["1", "2"]


def test_packed_pairs_follow_the_manifest(tmp_path):
    save(tmp_path / "clean.png", 1)
    save(tmp_path / "rain.png", 2)
    rows = [
        {
            "set": "s/train",
            "name": "1",
            "kind": "layer",
            "clean": "clean.png",
            "rain": "rain.png",
            "turn": "rot90",
        },
        {"set": "s/train", "name": "2", "kind": "side", "rain": "rain.png", "twin_in": ["Other"]},
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows[0]["rain"] = "turned.png"
    turned = Image.open(tmp_path / "rain.png").rotate(90, expand=True)
    turned.save(tmp_path / "turned.png")
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    layer, side = pairs(tmp_path, "s/train")
    clean = np.rot90(np.asarray(Image.open(tmp_path / "clean.png")))
    assert (layer.clean == clean).all()
    expected = np.minimum(clean.astype(int) + np.asarray(turned)[..., :1], 255)
    assert (layer.rainy == expected).all()
    assert side.rainy.shape == side.clean.shape == (16, 10, 3)
    assert len(pairs(tmp_path, "s/train", without_twins_in="Other")) == 1


def batches(start=0, **place):
    photo = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    sources = [Source(photos=[photo], maker=RainMaker()), Source(photos=[photo, photo], turns=True)]
    stages = (Stage(3, patch=16, batch=4), Stage(2, patch=24, batch=2))
    return Batches(sources, [1, 3], stages, seed=5, start=start, **place)


def test_a_run_that_goes_on_sees_the_same_patches():
    whole, rest = list(batches()), list(batches(start=2))
    assert len(whole) == 5
    assert len(rest) == 3
    for (a, b), (c, d) in zip(whole[2:], rest, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)
    assert whole[0][0].shape == (4, 3, 16, 16)
    assert whole[4][0].shape == (2, 3, 24, 24)
    assert whole[0][0].dtype == torch.uint8


def test_devices_share_a_batch():
    whole = batches().batch(1)[0]
    shares = [batches(rank=rank, world=2).batch(1)[0] for rank in (0, 1)]
    assert torch.equal(torch.stack(shares, 1).flatten(0, 1), whole)


def flat(*levels):
    return [np.full((20, 24, 3), level, np.uint8) for level in levels]


@pytest.mark.parametrize("clean", [None, Source(photos=flat(7, 8))])
def test_stages_with_real_rain_bring_real_and_unpaired_clean_patches(clean):
    sources = [Source(photos=flat(1, 2, 3))]
    stages = (Stage(1, patch=16, batch=3), Stage(2, patch=16, batch=2, real=6))
    unpaired = Unpaired(Source(photos=flat(4, 5, 6)), clean)

    def run(**place):
        return Batches(sources, [1], stages, unpaired=unpaired, seed=5, **place)

    supervised, first, second = run()
    assert len(supervised) == 2
    assert [len(side) for side in first] == [2, 2, 6, 6]
    levels = [set(side[:, 0, 0, 0].tolist()) for side in first]
    assert levels[2] <= {4, 5, 6} and len(levels[2]) > 1
    assert levels[3] <= ({7, 8} if clean else {1, 2, 3}) and len(levels[3]) > 1
    assert all(torch.equal(*both) for both in zip(second, *run(start=2), strict=True))
    shares = [run(rank=rank, world=2).batch(1)[2] for rank in (0, 1)]
    assert torch.equal(torch.stack(shares, 1).flatten(0, 1), first[2])


def test_dry_patches_stay_dry():
    rainy, clean = Source(photos=[np.zeros((9, 9, 3), np.uint8)]).patch(16, np.random.default_rng(0))
    assert (rainy == clean).all()
    assert rainy.shape == (16, 16, 3)


def test_stages_follow_each_other():
    stages = (Stage(3), Stage(2))
    assert [stage_at(stages, step)[1] for step in range(7)] == [0, 1, 2, 0, 1, 2, 2]


@pytest.mark.skipif(not DATA.is_dir(), reason="the research data are not here")
def test_packed_research_data_are_bit_exact():
    import hashlib

    found = {pair.name: pair for pair in pairs(DATA, "rain100h/test")}
    assert len(found) == 100
    for line in (DATA / "pairs.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["set"] == "rain100h/test":
            pair = found[row["name"]]
            assert hashlib.md5(np.ascontiguousarray(pair.rainy).tobytes()).hexdigest() == row["md5_rain"]
            assert hashlib.md5(pair.clean.tobytes()).hexdigest() == row["md5_clean"]
    assert len(pairs(DATA, "rain100l/train", without_twins_in="Rain800")) == 164


@pytest.mark.skipif(not DATA.is_dir(), reason="the research data are not here")
def test_rainy_inputs_have_the_published_scores():
    from unrain.lab.metrics import psnr_ssim

    for name, expected in (("rain100l/test", 26.90), ("rain100h/test", 13.56)):
        found = pairs(DATA, name)
        assert np.mean([psnr_ssim.psnr(p.rainy, p.clean) for p in found]) == pytest.approx(
            expected, abs=0.005
        )


def test_crossed_pairs_have_the_rain_of_one_and_the_clean_picture_of_another():
    kinds = [(10, 5), (50, 20), (90, 40)]
    sides = [
        [np.full((16, 16, 3), value, np.uint8) for value in (clean + rain, clean)] for clean, rain in kinds
    ]
    source = Source(pairs=[Pair(str(i), *both) for i, both in enumerate(sides)], crossed=True)
    drawn = set()
    for seed in range(100):
        rainy, clean = source.patch(8, np.random.default_rng(seed))
        drawn.add((int(clean[0, 0, 0]), int(rainy[0, 0, 0]) - int(clean[0, 0, 0])))
    assert drawn == {(clean, rain) for clean, _ in kinds for _, rain in kinds}
    # The rain of a given one still falls on all.
    drawn = {
        (int(clean[0, 0, 0]), int(rainy[0, 0, 0]) - int(clean[0, 0, 0]))
        for rainy, clean in (source.patch(8, np.random.default_rng(seed), index=1) for seed in range(50))
    }
    assert drawn == {(clean, 20) for clean, _ in kinds}


def test_patches_on_a_grid_come_from_all_its_places_and_are_not_mirrored():
    y, x = np.mgrid[:40, :50].astype(np.uint8)
    picture = np.stack([y, x, y], -1)
    source = Source(pairs=[Pair("0", picture, picture)], stride=8, flip=False)
    places = set()
    for seed in range(200):
        rainy, clean = source.patch(16, np.random.default_rng(seed))
        y0, x0 = (int(v) for v in rainy[0, 0, :2])
        assert (rainy == picture[y0 : y0 + 16, x0 : x0 + 16]).all()
        assert (clean == rainy).all()
        places.add((y0, x0))
    # (40 - 16) / 8 + 1 = 4 by floor((50 - 16) / 8) + 1 = 5 places.
    assert places == {(8 * i, 8 * j) for i in range(4) for j in range(5)}


def test_exposure_makes_photographs_darker_or_brighter_with_white_where_it_is_too_much():
    photo = np.arange(1, 1 + 16 * 16 * 3).reshape(16, 16, 3).clip(max=250).astype(np.uint8)
    source = Source(photos=[photo], flip=False, exposure=(0.5, 4.0))
    factors = []
    for seed in range(100):
        rainy, clean = source.patch(16, np.random.default_rng(seed))
        assert (rainy == clean).all()
        factors.append(clean[1, 0, 0] / photo[1, 0, 0])
        expected = np.minimum(photo * factors[-1], 255)
        assert np.abs(clean - expected).max() <= 3  # by the rounding of the factor's own pixel
    assert 0.5 <= min(factors) < 0.6
    assert 3.3 < max(factors) <= 4.05
    # Without it the light stays, and so does the sequence of patches.
    plain, _ = Source(photos=[photo], flip=False).patch(16, np.random.default_rng(0))
    assert (plain == photo).all()


def test_of_several_patches_the_one_with_the_strongest_upright_lines_is_taken():
    photo = np.full((64, 256, 3), 128, np.uint8)
    photo[:, 64:128:4] += 60  # pickets
    photo[::4, 192:] += 60  # steps, lying
    assert upright_lines(photo[:, 64:128]) > upright_lines(photo[:, :64]) == 0
    assert upright_lines(photo[:, 192:]) == 0
    rng = np.random.default_rng(0)
    upright, plain = (
        np.mean([upright_lines(source.patch(32, rng)[1]) for _ in range(60)])
        for source in (Source(photos=[photo], upright=8), Source(photos=[photo]))
    )
    assert upright > 2 * plain > 0


def test_photographs_are_enlarged():
    photo = np.zeros((256, 256, 3), np.uint8)
    photo[:, (np.arange(256) // 4) % 2 == 1] = 200  # bars of 4 pixels
    rng = np.random.default_rng(0)
    source = Source(photos=[photo], enlarged=(2.0, 4.0))
    bars = []
    for _ in range(50):
        patch, clean = source.patch(96, rng)
        assert patch.shape == (96, 96, 3)
        assert (patch == clean).all()
        edges = np.flatnonzero(np.diff((clean[48, :, 1] > 100).astype(int)))
        bars.append(float(np.diff(edges).mean()))
    assert 7.5 < min(bars) < 9
    assert 14 < max(bars) < 16.5
