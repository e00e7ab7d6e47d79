"""The HTML report: whole, closed to the outside, and safe from what files are called."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("skimage")
pytest.importorskip("matplotlib")
pytest.importorskip("pytorch_lightning")

from unrain import cli
from unrain.derainer import Derainer
from unrain.devices import Processor
from unrain.errors import UnrainError
from unrain.lab.bench.candidates import Candidate, find
from unrain.lab.bench.cost import Cost
from unrain.lab.bench.report import html as report_page
from unrain.lab.bench.report.html import page, write_page
from unrain.lab.bench.report.plots import Point, Series, _apart, histograms, quality_plot
from unrain.lab.bench.run import run

NASTY = "<img src=x onerror=alert(1)>"
VOID = {"img", "meta", "link", "br", "hr", "input"}


class Reader(HTMLParser):
    """Collects the elements with their attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words, self.open = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["script"]):
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(self.words)


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for suite, count in (("rain12", 12), (NASTY, 3)):
        for side in ("rain", "clean"):
            folder = tmp_path / "data" / suite / side
            folder.mkdir(parents=True)
            for i in range(count):
                picture = random.integers(0, 256, (16, 20, 3), np.uint8)
                Image.fromarray(picture).save(folder / f"{i}<b>.png")
    folder = tmp_path / "data" / "real" / "wet"
    folder.mkdir(parents=True)
    for i in range(4):
        Image.fromarray(random.integers(0, 256, (16, 20, 3), np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "data"


def results_of(data, tmp_path):
    """Somebody else's results, called nastily: the clean pictures, one of them darker."""
    folder = tmp_path / "theirs" / f"$x^2$ {NASTY}"
    for suite in ("rain12", NASTY):
        (folder / suite).mkdir(parents=True)
        for path in (data / suite / "clean").iterdir():
            picture = np.asarray(Image.open(path))
            Image.fromarray(picture // 2 if path.stem == "1<b>" else picture).save(folder / suite / path.name)
    return folder


def measure(data, tmp_path, tiny_model, suites=("rain12", NASTY)):
    candidates = [find(str(tiny_model)), find(str(results_of(data, tmp_path)))]
    measured = list(
        run(
            candidates,
            [(data, suite, False) for suite in suites],
            recursions=(1, 3),
            inputs=True,
            processor=Processor("cpu", threads=1),
        )
    )
    costs = {
        (candidates[0], recursions): Cost(1049, 900.0 * recursions, 81.5, "481x321") for recursions in (1, 3)
    }
    return measured, costs


def test_the_page_holds_everything_and_asks_for_nothing(data, tmp_path, tiny_model):
    measured, costs = measure(data, tmp_path, tiny_model)
    text = page(measured, costs, published=True)
    read = Reader(text)
    # Two suites; tiny with two numbers of recursions, and the folder, have three trios each.
    images = read.all("img")
    assert len(images) == 2 * 3 * 3 * 3
    for image in images:
        kind, _, code = image["src"].partition(",")
        assert kind == "data:image/webp;base64"
        with Image.open(io.BytesIO(base64.b64decode(code, validate=True))) as picture:
            assert picture.size == (20, 16) == (int(image["width"]), int(image["height"]))
        assert image["alt"]
    for tag, attributes in read.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"src", "srcset", "href", "xlink:href", "action", "data"} and tag != "a":
                assert value.startswith(("data:", "#"))
            if name == "style":
                assert "url(" not in value.replace("url(#", "")
    assert "http" not in "".join(re.findall(r"<style>.*?</style>|<svg.*?</svg>", text, re.DOTALL))
    assert all(one["href"].startswith(("#", "https://")) for one in read.all("a"))
    # One script, the page's own, and no other may run.
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [one["content"] for one in read.all("meta") if "http-equiv" in one]
    assert policy.startswith("default-src 'none'") and f"script-src 'sha256-{digest}'" in policy
    # Names within the plots are unique, and each reference finds its own.
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="#|url\(#)([\w-]+)', text))
    assert used and used <= set(ids)
    assert len(read.all("svg")) == 4 and all(one["aria-label"] for one in read.all("svg"))


def test_names_stay_text(data, tmp_path, tiny_model):
    measured, costs = measure(data, tmp_path, tiny_model)
    read = Reader(page(measured, costs, published=True))
    assert all(one["src"].startswith("data:") and "onerror" not in one for one in read.all("img"))
    # The only bold words are the page's own.
    assert len(read.all("b")) == 2 * 3 * 3
    for name in (NASTY, f"$x^2$ {NASTY}", "1<b>"):
        assert name in read.text


def test_measured_and_published_rows_are_told_apart(data, tmp_path, tiny_model):
    measured, costs = measure(data, tmp_path, tiny_model, suites=("rain12",))
    without, with_them = (page(measured, costs, published=published) for published in (False, True))
    rows = re.findall(r'<tr class="(\w+)">(.*?)</tr>', with_them)
    assert [origin for origin, _ in rows[:4]] == ["measured"] * 4
    assert {origin for origin, _ in rows[4:]} == {"published"}
    for origin, row in rows:
        assert (f'<span class="badge">{origin}' in row) and ("published" in row) == (origin == "published")
    prenet = next(row for _, row in rows if "PReNet [1]" in row)
    assert ">36.66<" in prenet and ">0.961<" in prenet and "published 2019" in prenet
    assert "1,049" in rows[1][1] and ">81.5<" not in rows[1][1] and ">82<" in rows[1][1]
    assert 'href="https://github.com/csdwren/PReNet"' in with_them
    assert "published" not in Reader(without).text


def test_best_median_and_worst_are_shown(data, tmp_path, tiny_model):
    measured, _ = measure(data, tmp_path, tiny_model, suites=(NASTY,))
    text = page(measured, {})
    for one in measured[1:]:
        ranked = sorted(one.per_image, key=lambda name: one.per_image[name]["psnr"], reverse=True)
        for place, name in zip(("Best", "Median", "Worst"), ranked, strict=True):
            escaped = name.replace("<", "&lt;").replace(">", "&gt;")
            assert f"<b>{place}</b> {escaped}, {one.per_image[name]['psnr']:.2f} dB" in text
    # The result in the page is that of the Derainer: of the folder's worst picture, the darker one.
    worst = text[text.rindex("<b>Worst</b> 1&lt;b&gt;") :]
    result = re.findall(r"base64,([^\"]+)", worst)[1]
    with Image.open(io.BytesIO(base64.b64decode(result))) as picture:
        shown = np.asarray(picture.convert("RGB")).astype(float)
    darker = np.asarray(Image.open(data / NASTY / "clean" / "1<b>.png")) // 2
    assert abs(shown.mean() - darker.mean()) < 6


def test_real_rain_has_pictures_and_no_histogram(data, tiny_model, monkeypatch):
    # With their parameters at hand NIQE and BRISQUE are measured, too; the pictures are too small for that.
    for variable in ("UNRAIN_NIQE", "UNRAIN_BRISQUE"):
        monkeypatch.delenv(variable, raising=False)
    candidate = find(str(tiny_model))
    measured = list(
        run([candidate], [(data, "real/wet", False)], inputs=True, processor=Processor("cpu", threads=1))
    )
    read = Reader(page(measured, {}))
    # Three of the four, with the input and the result; two recursions are the model's own.
    assert len(read.all("img")) == 3 * 2
    assert "real rain" in read.text and not read.all("svg")


def test_pictures_are_reduced_until_the_page_is_small(data, tmp_path, tiny_model, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (600, 900, 3), np.uint8)
    whole = report_page._as_url(noise, 10**9)
    small = report_page._as_url(noise, 20_000)
    for url, width in ((whole, 480), (small, 240)):
        with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as picture:
            assert picture.size == (width, round(600 * width / 900))
    assert len(small) < 4 / 3 * 20_000 + 40
    monkeypatch.setattr(report_page, "PICTURE_BYTES", 0)
    measured, costs = measure(data, tmp_path, tiny_model, suites=("rain12",))
    assert len(Reader(page(measured, costs)).all("img")) == 3 * 3 * 3


def test_the_command_derains_only_what_the_page_shows(data, tiny_model, tmp_path, monkeypatch, capsys):
    arguments = ["bench", str(tiny_model), "--data", str(data), "--suite", "rain12", "--threads", "1"]
    assert cli.main(arguments) == 0
    derained = []

    def counted(self, image, real=Derainer.__call__):
        derained.append(1)
        return real(self, image)

    monkeypatch.setattr(Derainer, "__call__", counted)
    out = tmp_path / "out" / "report.html"
    options = ["--report", str(out), "--size", "24x16", "--json"]
    assert cli.main([*arguments, *options]) == 0
    printed, said = capsys.readouterr()
    assert len(derained) == 3
    rows = json.loads(printed[printed.index("[\n") :])
    assert [row["reused"] for row in rows] == [12, 12]
    assert "deraining the best, median and worst pictures" in said
    text = out.read_text()
    assert "peak of a fresh process" in text and "24x16" in text
    assert list(out.parent.iterdir()) == [out]
    assert "1,049" in text


def test_a_page_that_cannot_be_written_leaves_nothing(data, tiny_model, tmp_path):
    measured = list(
        run([find(str(tiny_model))], [(data, "rain12", False)], processor=Processor("cpu", threads=1))
    )
    folder = tmp_path / "taken.html"
    folder.mkdir()
    with pytest.raises(UnrainError, match=r"taken\.html: cannot be written"):
        write_page(folder, measured, {})
    assert not list(tmp_path.glob("*.part"))


def test_labels_keep_their_distance():
    assert _apart([3.0, 1.0], 1) == [3.0, 1.0]
    moved = _apart([1.0, 1.0, 1.5, 9.0], 1)
    assert np.diff(sorted(moved)).min() >= 1 - 1e-9
    assert sum(moved) == pytest.approx(12.5)


@pytest.mark.parametrize("label", ["$x^2$", "a_b & <c>", "\u96e8", "%s {x}"])
def test_plots_take_any_label(label):
    points = [Point(label, 0, 14.1, 33.9), Point("b", 0, 28.2, 34.0), Point("c", 1, 900, 37.6)]
    drawn = quality_plot(points, "dB", "title", "one")
    assert Reader(drawn).text.count(label) == 1
    assert "#010203" not in drawn and "currentColor" in drawn
    drawn = histograms([Series(label, 0, [30.0, 31.0]), Series("input", -1, [20.0])], "dB", "title", "two")
    assert label in Reader(drawn).text
    assert quality_plot(points[:1], "dB", "title", "one") and histograms(
        [Series("a", 0, [1.0])], "dB", "t", "p"
    )


def test_a_model_without_figures_is_an_candidate_too(data, tmp_path):
    theirs = Candidate("theirs", results_of(data, tmp_path))
    measured = list(run([theirs], [(data, "rain12", False)], processor=Processor("cpu", threads=1)))
    read = Reader(page(measured, {}))
    assert len(read.all("svg")) == 1 and "theirs" in read.text
