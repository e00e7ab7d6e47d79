import csv
import json
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("skimage")
pytest.importorskip("torch")
import torch
from safetensors.torch import save_file

from toys import ROOT
from unrain import cli
from unrain.derainer import Derainer
from unrain.errors import UnrainError
from unrain.lab.bench import cache, run
from unrain.lab.bench.cache import open_results
from unrain.lab.bench.candidates import Candidate, find, find_peer, find_results, to_8_bit
from unrain.lab.bench.report.contact_sheet import spread
from unrain.lab.data.pairs import pairs
from unrain.lab.data.suites import open_suite
from unrain.lab.metrics import psnr_ssim
from unrain.lab.metrics.measures import UNCHANGED, open_measures
from unrain.lab.nets import build


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Results are kept below the working folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    for side, high in (("rain", 256), ("clean", 200)):
        folder = tmp_path / "data" / "set" / "test" / side
        folder.mkdir(parents=True)
        for i in range(3):
            Image.fromarray(rng.integers(0, high, (24, 20, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    shutil.copytree(tmp_path / "data" / "set" / "test" / "clean", tmp_path / "data" / "photos")
    shutil.copytree(tmp_path / "data" / "set" / "test" / "rain", tmp_path / "data" / "real" / "wet")
    return tmp_path / "data"


def halve(pair):
    """Derain such that the scores can be worked out by hand."""
    return pair.rainy // 2


def measure(restore, data, suite, recursions, *, truncate=False, metrics=()):
    opened = open_suite(data, suite)
    measures, _ = open_measures(metrics, opened.kind)
    kept = open_results(None, {})
    run.measure(restore, opened, measures, kept, truncate=truncate)
    return run.summarise(opened, measures, kept, recursions, truncate=truncate)


def scores(candidate, data, suite, **options):
    return [score for one in run.run([candidate], [(data, suite, False)], **options) for score in one.scores]


def test_a_score_is_the_mean_over_every_picture(data):
    found = pairs(data, "set/test")
    (score,) = measure(halve, data, "set/test", 2, metrics=("rgb",))
    assert score.pictures == 3
    assert score.recursions == 2
    for name, function, error in (
        ("psnr", psnr_ssim.psnr, 1e-3),
        ("ssim", psnr_ssim.ssim, 1e-4),
        ("psnr_rgb", psnr_ssim.psnr_rgb, 1e-3),
        ("ssim_rgb", psnr_ssim.ssim_rgb, 1e-4),
    ):
        expected = np.mean([function(pair.rainy // 2, pair.clean) for pair in found])
        assert getattr(score, name) == pytest.approx(expected, abs=error)


def test_results_can_be_truncated_beside_rounded(data):
    found = pairs(data, "set/test")

    def restore(pair):
        return np.minimum(pair.clean / np.float32(255) + np.float32(0.6 / 255), 1)

    rounded, truncated = measure(restore, data, "set/test", 1, truncate=True)
    assert not rounded.truncated and truncated.truncated
    assert rounded.psnr == pytest.approx(
        np.mean([psnr_ssim.psnr(np.minimum(pair.clean, 254) + 1, pair.clean) for pair in found]), abs=1e-3
    )
    assert truncated.psnr > rounded.psnr + 10


def test_rounding_in_bench_is_the_derainers_own(data, tiny_model):
    candidate = find(str(tiny_model))
    as_8_bit = scores(candidate, data, "set/test", recursions=(1, 2))
    as_float = scores(candidate, data, "set/test", recursions=(1, 2), truncate=True)
    rounded = [score for score in as_float if not score.truncated]
    assert [(score.psnr, score.ssim) for score in rounded] == [(one.psnr, one.ssim) for one in as_8_bit]
    derainer = Derainer(tiny_model)
    for pair in pairs(data, "set/test"):
        floats = derainer(pair.rainy.astype(np.float32) / np.float32(255))
        np.testing.assert_array_equal(to_8_bit(floats), derainer(pair.rainy))


def test_photographs_are_measured_against_themselves(data):
    found = list(open_suite(data, "photos"))
    assert len(found) == 3
    assert all((pair.rainy == pair.clean).all() for pair in found)
    (score,) = measure(lambda pair: pair.rainy, data, "photos", 1)
    assert score.psnr == UNCHANGED


def test_pictures_of_somebody_else_are_matched_by_name(data, tmp_path):
    theirs = tmp_path / "theirs" / "set" / "test"
    theirs.mkdir(parents=True)
    found = pairs(data, "set/test")
    for pair, name in zip(found, ("0", "rain-1", "2_derained"), strict=True):
        Image.fromarray(pair.rainy // 2).save(theirs / f"{name}.png")
    (expected,) = measure(halve, data, "set/test", None)
    candidate = find(str(tmp_path / "theirs"))
    assert candidate.name == "theirs"
    (score,) = scores(candidate, data, "set/test")
    assert (score.psnr, score.ssim, score.recursions) == (expected.psnr, expected.ssim, None)
    (theirs / "rain-1.png").rename(theirs / "4.png")
    with pytest.raises(UnrainError, match="no pictures for 1 of set/test"):
        scores(candidate, data, "set/test")
    Image.fromarray(found[1].rainy[:12]).save(theirs / "1.png")
    with pytest.raises(UnrainError, match="1 of set/test: the result is 20x12, the picture 20x24"):
        scores(candidate, data, "set/test")
    Image.fromarray(found[1].rainy).save(theirs / "norain-1.png")
    with pytest.raises(UnrainError, match=r"2 pictures for 1 of set/test: 1\.png, norain-1\.png"):
        scores(candidate, data, "set/test")


def test_results_in_sub_folders_are_told_apart(tmp_path):
    for name, light in (("a/1", 10), ("b/1_derained", 20), ("b/2", 30)):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (light,) * 3).save(path)
    look_up = find_results(tmp_path, "set/test")
    assert [look_up(name)[0, 0, 0] for name in ("a/1", "b/1", "2")] == [10, 20, 30]
    with pytest.raises(UnrainError, match="2 pictures for 1 of set/test"):
        look_up("1")


def test_a_checkpoint_is_measured_without_exporting_it(data, tmp_path):
    arguments = {"width": 24, "encoder": [1, 1], "decoder": [1]}
    # With some weights a value half-way between two levels is rounded up here and down there.
    torch.manual_seed(0)
    net = build("rdmc_lite", **arguments)
    torch.nn.init.normal_(net.exit.weight, std=0.05)
    path = tmp_path / "run" / "weights.safetensors"
    path.parent.mkdir()
    save_file(net.state_dict(), path, {"network": "rdmc_lite", "arguments": json.dumps(arguments)})
    candidate = find(str(path))
    assert candidate.name == "run"
    rows = scores(candidate, data, "set/test", recursions=(1, 3))
    for recursions, score in zip((1, 3), rows, strict=True):

        def restore(pair, recursions=recursions):
            rainy = torch.from_numpy(pair.rainy.transpose(2, 0, 1)[None] / np.float32(255))
            with torch.inference_mode():
                derained = net.eval()(rainy, recursions)[-1][0].clamp(0, 1).numpy()
            return to_8_bit(derained.transpose(1, 2, 0))

        (expected,) = measure(restore, data, "set/test", recursions)
        assert (score.recursions, score.psnr, score.ssim) == (recursions, expected.psnr, expected.ssim)
    with pytest.raises(UnrainError, match="run: only exported models have a card"):
        scores(candidate, data, "set/test", card=True)


def test_a_peer_makes_all_its_recursions(data, tmp_path):
    path = tmp_path / "theirs.safetensors"
    save_file(build("prenet").state_dict(), path)
    peer = find_peer(f"prenet:{path}")
    assert [score.recursions for score in scores(peer, data, "set/test")] == [6]
    assert [score.recursions for score in scores(peer, data, "set/test", recursions=(2,))] == [2]


def test_what_is_no_peer_is_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("text")
    for text, words in (
        ("prenet", "NETWORK:FILE"),
        ("nonet:file", "no network is called 'nonet'"),
        (f"prenet:{tmp_path}/none.safetensors", "not the weights of a prenet"),
        (f"prenet:{tmp_path}/text.safetensors", "not the weights of a prenet"),
        (f"prenet:{tmp_path}/other.safetensors", "not the weights of a prenet"),
    ):
        with pytest.raises(UnrainError, match=words) as caught:
            find_peer(text)
        assert "\n" not in str(caught.value)


def test_the_command_prints_every_score_and_notes_it_in_the_card(
    data, tmp_path, model_folder, capsys, monkeypatch
):
    monkeypatch.setattr(run, "_commit", lambda: "abc1234")
    shutil.copytree(model_folder, tmp_path / "models")
    tiny = tmp_path / "models" / "tiny.onnx"
    card = tiny.with_suffix(".json")
    arguments = ["bench", str(tiny), "--data", str(data), "--suite", "set/test", "--suite", "photos"]
    assert cli.main([*arguments, "--recursions", "1", "--recursions", "2", "--card"]) == 0
    out = capsys.readouterr().out
    # The head, the input on the pairs, two numbers of recursions on two suites.
    assert len(out.splitlines()) == 1 + 1 + 4
    written = json.loads(card.read_text())
    assert written["scores_commit"] == "abc1234"
    assert set(written["scores"]) == {"set/test T1", "set/test T2", "photos T1", "photos T2"}
    assert written["scores"]["set/test T1"]["pictures"] == 3
    assert set(written["scores"]["photos T1"]) == {"pictures", "psnr", "ssim", "seconds"}
    peer = tmp_path / "peer.safetensors"
    save_file(build("prenet").state_dict(), peer)
    options = ["--peer", f"prenet:{peer}", "--truncate", "--metric", "rgb"]
    assert cli.main([*arguments, *options, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["model"], row["suite"], row["truncated"]) for row in rows] == [
        (model, suite, truncated)
        for suite, models in (("set/test", ("input", "tiny", "peer")), ("photos", ("tiny", "peer")))
        for model in models
        for truncated in (False, True)
    ]
    assert all((row["psnr_rgb"] is None) == row["truncated"] for row in rows)
    assert cli.main([*arguments, *options, "--csv"]) == 0
    written = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["psnr"] for row in written] == [str(row["psnr"]) for row in rows]
    assert cli.main([*arguments, "--csv", "--json"]) == 2
    assert capsys.readouterr().err == "unrain: error: --csv and --json: give one of them\n"


def test_real_rain_is_measured_without_a_clean_side(data, tiny_model, capsys, monkeypatch):
    for variable in ("UNRAIN_NIQE", "UNRAIN_BRISQUE"):
        monkeypatch.delenv(variable, raising=False)
    assert cli.main(["bench", str(tiny_model), "--real", str(data / "real" / "wet"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert "NIQE is left out: UNRAIN_NIQE is not set" in err
    rows = json.loads(out)
    assert [(row["model"], row["suite"]) for row in rows] == [("input", "wet"), ("tiny", "wet")]
    # Beside --data, too, a set is called by a name and not by its whole path.
    beside = ["--data", str(data), "--real", str(data / "real" / "wet"), "--json"]
    assert cli.main(["bench", str(tiny_model), *beside]) == 0
    assert {row["suite"] for row in json.loads(capsys.readouterr().out)} == {"wet"}
    assert all(row["psnr"] is None and row["niqe"] is None for row in rows)
    assert rows[0]["change_away"] in (0, None)
    assert cli.main(["bench", str(tiny_model), "--data", str(data), "--suite", "real/wet"]) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert "streaks" in head and first.startswith("input") and second.startswith("tiny")


def test_a_killed_run_goes_on_and_a_second_one_reuses(
    data, tiny_model, derained, tmp_path, monkeypatch, capsys
):
    arguments = ["bench", str(tiny_model), "--data", str(data), "--suite", "set/test", "--json"]
    assert cli.main(arguments) == cli.EXIT_FAILED
    # As if it had been killed in the middle of a line.
    for file in (tmp_path / "runs" / "bench").iterdir():
        with file.open("a") as stream:
            stream.write('{"name": "1", "ps')
    capsys.readouterr()
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    first = json.loads(out)
    assert len(derained) == 2 + 2
    assert [row["reused"] for row in first] == [3, 1]
    assert "4 of 6 values are from an earlier run with the same files, code and libraries (runs/bench)" in err
    assert cli.main(arguments) == 0
    again = json.loads(capsys.readouterr().out)
    assert len(derained) == 4
    assert [row | {"reused": 0} for row in again] == [row | {"reused": 0} for row in first]
    assert cli.main([*arguments, "--fresh"]) == 0
    assert [row["reused"] for row in json.loads(capsys.readouterr().out)] == [0, 0]
    assert len(derained) == 7
    # Another picture, another code: nothing is reused.
    Image.new("RGB", (20, 24)).save(data / "set" / "test" / "rain" / "0.png")
    assert cli.main(arguments) == 0
    assert [row["reused"] for row in json.loads(capsys.readouterr().out)] == [0, 0]
    monkeypatch.setattr(cache, "fingerprint", lambda: "another")
    monkeypatch.setattr(run, "fingerprint", lambda: "another")
    assert cli.main(arguments) == 0
    assert [row["reused"] for row in json.loads(capsys.readouterr().out)] == [0, 0]


def test_what_an_candidate_is_decides_what_is_reused(data, tiny_model, tmp_path):
    other = build("prenet")
    save_file(other.state_dict(), tmp_path / "one.safetensors")
    one = find_peer(f"prenet:{tmp_path / 'one.safetensors'}")
    assert cache.identity(one) == cache.identity(one)
    with torch.no_grad():
        next(iter(other.parameters())).add_(1e-3)
    save_file(other.state_dict(), tmp_path / "two.safetensors")
    assert cache.identity(one) != cache.identity(find_peer(f"prenet:{tmp_path / 'two.safetensors'}"))
    folder = find(str(data / "photos"))
    before = cache.identity(folder)
    (data / "photos" / "0.png").touch()
    assert cache.identity(folder) != before
    assert cache.identity(find(str(tiny_model))) != cache.identity(run.INPUT)


def test_wrong_metrics_are_refused(data, tiny_model, capsys, monkeypatch):
    monkeypatch.delenv("UNRAIN_LPIPS", raising=False)
    arguments = ["bench", str(tiny_model), "--data", str(data), "--suite", "set/test", "--metric"]
    for metric, words in (
        ("vif", "no such metric, choose among rgb, lpips, niqe, brisque, streaks"),
        ("rgb:file", "give a file as NAME:PATH, for lpips, niqe, brisque"),
        ("lpips", "UNRAIN_LPIPS: not set"),
        ("niqe:nothing.npz", "nothing.npz: no such file"),
        ("brisque:nothing", "no such file"),
    ):
        wrong = metric in ("vif", "rgb:file")
        assert cli.main([*arguments, metric]) == (cli.EXIT_USAGE if wrong else cli.EXIT_FAILED)
        err = capsys.readouterr().err
        assert words in err
        assert len(err.splitlines()) == 1
    assert cli.main(["bench", str(tiny_model)]) == cli.EXIT_USAGE
    assert "with --data, or real rain with --real" in capsys.readouterr().err
    assert cli.main([*arguments[:4], "--suite", "none"]) == cli.EXIT_USAGE
    assert "none: no such test set" in capsys.readouterr().err


def test_a_sheet_has_a_row_for_each_picture_and_a_column_for_each_result(data, tiny_model, tmp_path, capsys):
    out = tmp_path / "sheets" / "sheet.png"
    arguments = ["bench", "sheet", str(tiny_model), "--data", str(data)]
    drawn = [*arguments, "-o", str(out), "--pictures", "2"]
    assert cli.main([*drawn, "--suite", "real/wet"]) == 0
    assert "2 of 3 pictures of real/wet" in capsys.readouterr().out
    with Image.open(out) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    column, row = 20 + 6, 24 + 22 + 6
    assert pixels.shape == (22 + 2 * row, 6 + 2 * column, 3)
    for i, name in enumerate(("0", "2")):
        rainy = np.asarray(Image.open(data / "real" / "wet" / f"{name}.png"))
        y = 22 + i * row + 22
        np.testing.assert_array_equal(pixels[y : y + 24, 6:26], rainy)
        derained = Derainer(tiny_model)(rainy)
        np.testing.assert_array_equal(pixels[y : y + 24, 6 + column : 26 + column], derained)
    # Pairs have their clean side in the last column, and each suite has a sheet of its own.
    assert cli.main([*drawn, "--suite", "set/test", "--suite", "photos"]) == 0
    with Image.open(out.with_name("sheet-set-test.png")) as sheet:
        assert sheet.width == 6 + 3 * column
    with Image.open(out.with_name("sheet-photos.png")) as sheet:
        assert sheet.width == 6 + 2 * column
    assert cli.main([*arguments, "--suite", "photos", "-o", "sheet.xyz"]) == cli.EXIT_USAGE
    assert "sheet.xyz: no format of pictures" in capsys.readouterr().err


def test_pictures_are_spread_over_the_set():
    names = tuple(map(str, range(84)))
    assert spread(names, 100) == names
    assert spread(names, 2) == ("0", "83")
    found = [int(name) for name in spread(names, 20)]
    assert len(set(found)) == 20 and set(np.diff(found)) <= {4, 5}


def test_a_card_names_the_command_that_measures_it_again():
    usual = [f"{suite} T{t}" for suite in run.SUITES for t in (2, 1)]
    assert run._command("a", usual[1::2]) == "unrain bench a --data DATA --card"
    assert run._command("a", usual) == "unrain bench a --data DATA --recursions 1 --recursions 2 --card"
    assert run._command("a", ["x/y T1"]) == "unrain bench a --data DATA --suite x/y --card"


def test_a_card_names_a_clean_commit(tmp_path, monkeypatch, data, model_folder):
    package = tmp_path / "code" / "unrain"
    here = package / "lab" / "bench" / "run.py"
    here.parent.mkdir(parents=True)
    here.write_text("1")
    shutil.copytree(model_folder, package / "weights")
    monkeypatch.setattr(run, "__file__", str(here))
    git = ["git", "-C", str(package), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    candidate = find(str(package / "weights" / "tiny.onnx"))
    card = package / "weights" / "tiny.json"
    # A second run finds the card that the first one has changed.
    for _ in range(2):
        scores(candidate, data, "set/test", card=True)
        commit = json.loads(card.read_text())["scores_commit"]
        assert len(commit) >= 7 and head.startswith(commit)
    before = card.read_bytes()
    for name in (here, package / "new.py"):
        name.write_text("2")
        with pytest.raises(UnrainError, match=rf"unrain: differs from commit {commit}, .*: commit first"):
            scores(candidate, data, "set/test", card=True)
        here.write_text("1")
    assert card.read_bytes() == before
    monkeypatch.setattr(run, "__file__", str(tmp_path / "a" / "b" / "run.py"))
    (tmp_path / "a").mkdir()
    assert run._commit() == ""


def test_a_network_that_counts_its_batches_has_an_identity():
    # BatchNorm keeps a number without dimensions, whose bytes PyTorch does not show.
    net = build("rdmc", width=2, recursions=1)
    before = cache.identity(Candidate("rdmc", net))
    counted = next(name for name in net.state_dict() if name.endswith("num_batches_tracked"))
    net.state_dict()[counted].add_(1)
    assert cache.identity(Candidate("rdmc", net)) != before


def test_the_cards_that_ship_name_a_clean_commit():
    cards = sorted((ROOT / "src" / "unrain" / "weights").glob("*.json"))
    assert cards
    unclean = [card.name for card in cards if "+" in json.loads(card.read_text())["scores_commit"]]
    assert not unclean


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speed", "--peer", "prenet"], "give a peer as NETWORK:FILE"),
        (["speed", "--peer", "nosuch:weights.safetensors"], "nosuch"),
        (["speed", "--size", "wide"], "give a size as WIDTHxHEIGHT"),
    ],
)
def test_a_wrong_peer_or_size_is_a_wrong_command(capsys, arguments, message):
    assert (
        cli.main(["bench", *arguments, *([] if "speed" in arguments else ["--data", "."])]) == cli.EXIT_USAGE
    )
    assert message in capsys.readouterr().err
