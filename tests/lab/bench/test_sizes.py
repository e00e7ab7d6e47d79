"""`unrain bench sizes`: whole tables, and a word on everything that was left out."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("skimage")
pytest.importorskip("matplotlib")
pytest.importorskip("pytorch_lightning")
from safetensors.torch import save_file

from toys import natural
from unrain import cli
from unrain.derainer import Derainer
from unrain.lab.bench import memory
from unrain.lab.bench.candidates import halo_of, open_derainer
from unrain.lab.bench.raindrops import rain_layer
from unrain.lab.bench.sizes import reduce_to
from unrain.lab.data.rain import add_layer
from unrain.lab.metrics.chroma import chroma_change
from unrain.lab.metrics.psnr_ssim import psnr
from unrain.lab.nets import build


@pytest.fixture
def photos(cwd, monkeypatch):
    """Photographs with long sides of 96, 64 and 40, and no process for each measurement of memory."""
    (cwd / "photos").mkdir()
    for name, size in (("wide", (72, 96)), ("tall", (64, 48)), ("small", (40, 40))):
        Image.fromarray(natural(*size)).save(cwd / "photos" / f"{name}.png")
    monkeypatch.setattr(memory, "peak_memory", lambda text, kind, picture, **_: float(max(picture.shape)))
    return cwd / "photos"


def bench(capsys, *arguments):
    code = cli.main(["bench", "sizes", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_every_size_rain_and_number_of_levels_has_a_row(photos, tiny_model, capsys):
    sizes = ("--size", 64, "--size", 48, "--size", "native", "--levels", 1, "--levels", "auto")
    code, out, _ = bench(capsys, tiny_model, "--photos", photos, *sizes, "--threads", 1, "--json")
    table = json.loads(out)
    assert code == 0 and table["processor"]["threads"] == 1 and table["photographs"] == 3 and table["machine"]
    assert [(row["levels"], row["rain"], row["size"], row["pictures"]) for row in table["rows"]] == [
        (levels, rain, size, pictures)
        for levels in (1, "auto")
        for rain in ("scaled", "fine")
        for size, pictures in ((48, 2), (64, 2), ("native", 1))
    ]
    for row in table["rows"]:
        assert row["model"] == "tiny" and row["recursions"] == 2 and row["seconds"] > 0
        assert row["gain"] == pytest.approx(row["psnr"] - row["psnr_rainy"], abs=2e-3)
        assert row["peak_memory_mb"] == (96 if row["size"] == "native" else row["size"])
        assert row["worked_at"] == "1"
    small = [line for line in table["left_out"] if "small (40)" in line]
    assert len(small) == 2 and "smaller than 48" in small[0] and "smaller than 64" in small[1]
    assert "wide" not in "".join(table["left_out"])


def test_a_row_is_what_the_derainer_makes_of_the_rain(photos, tiny_model, capsys):
    clean = reduce_to(natural(72, 96), 80)
    assert clean.shape == (60, 80, 3)
    options = ("--photos", photos, "--size", 80, "--rain", "fine", "--levels", 2, "--seed", 3, "--json")
    _, out, _ = bench(capsys, tiny_model, *options)
    row = json.loads(out)["rows"][0]
    rainy = add_layer(clean, rain_layer(60, 80, "fine", name="wide", seed=3))
    assert (rainy >= clean).all() and (rainy > clean).any()
    derained = Derainer(tiny_model, levels=2)(rainy)
    assert row["psnr_rainy"] == pytest.approx(psnr(rainy, clean), abs=1e-3)
    assert row["psnr"] == pytest.approx(psnr(derained, clean), abs=1e-3)
    assert row["chroma"] == pytest.approx(chroma_change(derained, clean), abs=1e-3)
    assert row["chroma_rainy"] == pytest.approx(chroma_change(rainy, clean), abs=1e-3)


def test_a_second_run_only_reads(photos, tiny_model, capsys, monkeypatch):
    options = (tiny_model, "--photos", photos, "--size", 48, "--rain", "scaled")
    _, first, _ = bench(capsys, *options)
    with monkeypatch.context() as patch:
        patch.setattr(Derainer, "derain", lambda *_: pytest.fail("derained again"))
        _, second, _ = bench(capsys, *options)
    assert second.startswith(first.rstrip("\n").rpartition("smaller than")[0])
    assert "2 of 2 values are from an earlier run" in second
    # Another seed is another rain.
    _, other, _ = bench(capsys, *options, "--seed", 1, "--json")
    assert all(row["reused"] == 0 for row in json.loads(other)["rows"])


@pytest.mark.slow
def test_the_table_as_a_page_and_as_csv(photos, tiny_model, capsys):
    report = ("--report", "out/sizes.html")
    sizes = ("--size", 32, "--size", 48, "--size", "native", "--levels", 1, "--levels", "auto")
    code, out, _ = bench(capsys, tiny_model, "--photos", photos, *sizes, *report)
    assert code == 0 and "smaller than 48, left out there: small (40)" in out
    code, out, _ = bench(capsys, tiny_model, "--photos", photos, *sizes, "--csv")
    rows = list(csv.DictReader(out.splitlines()))
    assert len(rows) == 2 * 2 * 3 and rows[0]["model"] == "tiny" and float(rows[0]["psnr"])
    page = Path("out/sizes.html").read_text()
    assert page.count("<tbody>") == page.count('role="img"') == 2
    assert "default-src 'none'" in page and "small (40)" in page and "full size" in page


@pytest.mark.slow
def test_peers_are_left_out_where_full_size_is_too_large(photos, tiny_model, capsys):
    save_file(build("prenet").state_dict(), "theirs.safetensors")
    options = (
        "--size",
        32,
        "--size",
        48,
        "--size",
        "native",
        "--rain",
        "fine",
        "--levels",
        1,
        "--levels",
        "auto",
    )
    peer = ("--peer", "prenet:theirs.safetensors", "--peer-side", 40)
    code, out, _ = bench(capsys, "--photos", photos, *options, *peer)
    assert code == 0
    rows = [line.split() for line in out.splitlines() if line.startswith("theirs ")]
    assert [row[2:6] for row in rows[:6]] == [
        ["1", "fine", "32", "3"],
        ["1", "fine", "48", "0"],
        ["1", "fine", "native", "0"],
        ["auto", "fine", "32", "3"],
        ["auto", "fine", "48", "2"],
        ["auto", "fine", "native", "2"],
    ]
    assert rows[1][6:] == ["-"] * 6 + ["left", "out"]
    assert "theirs at full size: left out at 48, native, above --peer-side 40" in out


def test_a_broken_photograph_is_named_and_the_others_are_measured(photos, tiny_model, capsys):
    (photos / "broken.png").write_bytes(b"no picture")
    code, out, err = bench(capsys, tiny_model, "--photos", photos, "--size", 48, "--rain", "fine")
    assert code == 1 and "broken.png" in err and "left out" in err and len(err.splitlines()) == 1
    assert any(line.startswith("tiny") and " 48 " in line for line in out.splitlines())


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--size", "97"], 2, "no photograph is larger than 96"),
        (["--size", "0"], 2, "size is 0: give 32 or more"),
        (["--levels", "9"], 2, "levels is 9"),
        (["--levels", "some"], 2, "some"),
        (["--rain", "hail"], 2, "hail"),
        (["--recursions", "0"], 2, "recursions is 0"),
    ],
)
def test_wrong_numbers_are_refused(photos, tiny_model, capsys, arguments, code, said):
    found, out, err = bench(capsys, tiny_model, "--photos", photos, *arguments)
    assert (found, out) == (code, "") and said in err


def test_what_cannot_be_measured_is_refused(photos, tiny_model, capsys):
    assert bench(capsys, tiny_model)[0] == 2
    code, _, err = bench(capsys, photos, "--photos", photos)
    assert code == 2 and "one size only" in err
    code, _, err = bench(capsys, tiny_model, "--photos", "nowhere")
    assert code == 1 and "nowhere" in err


def test_native_alone_is_every_photograph_as_it_is(photos, tiny_model, capsys):
    options = ("--photos", photos, "--size", "native", "--rain", "scaled", "--json")
    _, out, _ = bench(capsys, tiny_model, *options)
    table = json.loads(out)
    assert [(row["size"], row["pictures"]) for row in table["rows"]] == [("native", 3)]
    assert table["left_out"] == []


def test_pictures_are_never_enlarged():
    with pytest.raises(ValueError, match="40x30 would have to be enlarged to 41"):
        reduce_to(natural(30, 40), 41)


def test_prenet_in_tiles_is_prenet_on_the_whole_picture():
    net = build("prenet")
    assert halo_of(net, 2) == 26 and halo_of(net) == 6 * 13
    rainy = natural(90, 70)
    whole, _ = open_derainer(net, 2)
    tiled, count = open_derainer(net, 2, halo=26)
    small = Derainer(tiled.engine, levels=1, tile=75, overlap=4)
    assert count == 2 and small._grid(90, 70).rows[1:]
    assert np.abs(whole(rainy).astype(int) - small(rainy)).max() <= 1
