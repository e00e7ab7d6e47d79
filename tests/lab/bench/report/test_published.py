"""What others published stands beside what was measured, marked, with its source."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("skimage")
pytest.importorskip("pytorch_lightning")

from unrain import cli
from unrain.lab.bench.report.published import figures, figures_of
from unrain.lab.data import suites
from unrain.lab.data.suites import open_suite


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A made-up Rain12, the smallest set that papers measure on, and a folder that is no published set."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for name, count in (("rain12", 12), ("mine", 2)):
        for side in ("rain", "clean"):
            folder = tmp_path / "data" / name / side
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(random.integers(0, 256, (16, 20, 3), np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "data"


def test_every_figure_is_one_of_a_known_set_and_has_a_source():
    titles = {known.title for known in suites.PUBLISHED.values()} | {"Test100", "Rain1200"}
    found = figures()
    assert len({(one.label, one.set) for one in found}) == len(found)
    for one in found:
        assert one.set in titles
        assert 10 < one.psnr < 50 and 0.4 < one.ssim < 1
        assert 2010 < one.year < 2030
        assert one.source.url.startswith("https://") and one.source.read and one.source.protocol
        assert one.source.channel in ("Y", "RGB") and one.trained_on


def test_figures_are_found_by_the_set_and_by_its_other_names(data):
    found = figures_of(open_suite(data, "rain12"))
    prenet = next(one for one in found if one.method == "PReNet")
    assert (prenet.psnr, prenet.ssim, prenet.source.number) == (36.66, 0.961, 1)
    assert {one.set for one in found} == {"Rain12"}
    assert figures_of(open_suite(data, "mine")) == []
    remarks = {one.set: one.remark for one in figures()}
    assert "98 of Rain800's 100 pictures" in remarks["Test100"]


def test_published_rows_are_marked_in_table_json_and_csv(data, tiny_model, tmp_path, capsys):
    arguments = ["bench", str(tiny_model), "--data", str(data), "--suite", "rain12", "--suite", "mine"]
    assert cli.main([*arguments, "--published"]) == 0
    lines = capsys.readouterr().out.splitlines()
    published = [line for line in lines if " published " in line and line.startswith("PReNet ")]
    assert len(published) == 1
    assert " ".join(published[0].split()) == "PReNet [1] rain12 - - 36.66 0.961 - published 2019"
    # They follow what was measured on their set, and the sources stand at the end.
    assert [line.split()[0] for line in lines[1:3]] == ["input", "tiny"]
    assert lines.index(published[0]) < next(i for i, line in enumerate(lines) if " mine " in line)
    assert lines[-2].startswith("[1] published, not measured here: Progressive Image Deraining")
    options = ["--published", "--cost", "--size", "24x16", "--threads", "1"]
    assert cli.main([*arguments, *options, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    by_origin = {
        origin: [row for row in rows if row["origin"] == origin] for origin in ("measured", "published")
    }
    assert len(by_origin["measured"]) == 4 and len(by_origin["published"]) == len(
        figures_of(open_suite(data, "rain12"))
    )
    assert sum(map(len, by_origin.values())) == len(rows)
    for row in by_origin["published"]:
        assert row["source"] and row["year"] and row["protocol"].startswith("Y, Rain12")
        assert row["pictures"] is None and row["parameters"] is None and row["peak_memory_mb"] is None
    for row in by_origin["measured"]:
        assert row["source"] is None and row["year"] is None
        assert (row["parameters"] is None) == (row["model"] == "input")
    tiny = by_origin["measured"][1]
    # Two recursions.
    assert tiny["macs_per_pixel"] == pytest.approx(2 * (3 * 6 * 49 + 3 * 6 * 9 / 64), abs=0.1)
    assert tiny["memory_size"] == "24x16"
    assert cli.main([*arguments, *options, "--csv"]) == 0
    written = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert list(written[0]) == list(rows[0])
    assert [row["psnr"] for row in written] == [str(row["psnr"]) for row in rows]
    assert [row["origin"] for row in written] == [row["origin"] for row in rows]
    assert written[0]["parameters"] == ""


def test_costs_are_columns_only_if_asked_for(data, tiny_model, capsys):
    arguments = ["bench", str(tiny_model), "--data", str(data), "--suite", "mine", "--threads", "1"]
    assert cli.main(arguments) == 0
    plain = capsys.readouterr().out.splitlines()
    assert plain[0].split()[-1] == "seconds"
    assert cli.main([*arguments, "--cost", "--size", "24x16"]) == 0
    head, rainy, tiny = capsys.readouterr().out.splitlines()
    assert head.split()[-4:] == ["seconds", "weights", "kMAC/px", "MB"]
    assert rainy.split()[-5:] == ["-", "-", "-", "2", "reused"]
    assert tiny.split()[-5:-3] == ["1,049", "1.8"]
    assert cli.main([*arguments, "--cost", "--size", "24x16", "--size", "16x16"]) == cli.EXIT_USAGE
    assert "--size" in capsys.readouterr().err
    assert cli.main([*arguments, "--cost", "--size", "24"]) == cli.EXIT_USAGE
    assert "WIDTHxHEIGHT" in capsys.readouterr().err
