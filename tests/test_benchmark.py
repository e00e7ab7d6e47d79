import json
import shutil

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("skimage")
pytest.importorskip("torch")
import torch
from safetensors.torch import save_file

from unrain import cli
from unrain.derainer import Derainer
from unrain.errors import UnrainError
from unrain.lab.bench import benchmark, metrics
from unrain.lab.bench.entrants import find, find_peer, to_8_bit
from unrain.lab.data import pairs
from unrain.lab.nets import build


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    for side, high in (("rain", 256), ("clean", 200)):
        folder = tmp_path / "data" / "set" / "test" / side
        folder.mkdir(parents=True)
        for i in range(3):
            Image.fromarray(rng.integers(0, high, (24, 20, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    shutil.copytree(tmp_path / "data" / "set" / "test" / "clean", tmp_path / "data" / "photos")
    return tmp_path / "data"


def halve(pair):
    """Derain such that the scores can be worked out by hand."""
    return pair.rainy // 2


def test_a_score_is_the_mean_over_every_picture(data):
    found = pairs(data, "set/test")
    (score,) = benchmark.measure(halve, "set/test", found, 2)
    expected = [metrics.psnr(pair.rainy // 2, pair.clean) for pair in found]
    assert score.pictures == 3
    assert score.recursions == 2
    assert score.psnr == pytest.approx(np.mean(expected), abs=1e-3)
    assert score.ssim == pytest.approx(
        np.mean([metrics.ssim(pair.rainy // 2, pair.clean) for pair in found]), abs=1e-4
    )


def test_results_can_be_truncated_beside_rounded(data):
    found = pairs(data, "set/test")

    def restore(pair):
        return np.minimum(pair.clean / np.float32(255) + np.float32(0.6 / 255), 1)

    rounded, truncated = benchmark.measure(restore, "set/test", found, 1, truncate=True)
    assert not rounded.truncated and truncated.truncated
    assert rounded.psnr == pytest.approx(
        np.mean([metrics.psnr(np.minimum(pair.clean, 254) + 1, pair.clean) for pair in found]), abs=1e-3
    )
    assert truncated.psnr > rounded.psnr + 10


def test_rounding_in_bench_is_the_derainers_own(data, tiny_model):
    arguments = {"suites": ("set/test",), "recursions": (1, 2)}
    entrant = find(str(tiny_model))
    as_8_bit = [score for _, score in benchmark.bench([entrant], data, **arguments)]
    as_float = [score for _, score in benchmark.bench([entrant], data, **arguments, truncate=True)]
    rounded = [score for score in as_float if not score.truncated]
    assert [(score.psnr, score.ssim) for score in rounded] == [(one.psnr, one.ssim) for one in as_8_bit]
    derainer = Derainer(tiny_model)
    for pair in pairs(data, "set/test"):
        floats = derainer(pair.rainy.astype(np.float32) / np.float32(255))
        np.testing.assert_array_equal(to_8_bit(floats), derainer(pair.rainy))


def test_photographs_are_measured_against_themselves(data):
    found = benchmark.suite_pairs(data, "photos")
    assert len(found) == 3
    assert all((pair.rainy == pair.clean).all() for pair in found)
    (score,) = benchmark.measure(lambda pair: pair.rainy, "photos", found, 1)
    assert score.psnr == benchmark.UNCHANGED


def test_pictures_of_somebody_else_are_matched_by_name(data, tmp_path):
    results = tmp_path / "theirs" / "set" / "test"
    results.mkdir(parents=True)
    found = pairs(data, "set/test")
    for pair, name in zip(found, ("0", "rain-1", "2_derained"), strict=True):
        Image.fromarray(pair.rainy // 2).save(results / f"{name}.png")
    (expected,) = benchmark.measure(halve, "set/test", found, None)
    entrant = find(str(tmp_path / "theirs"))
    assert entrant.name == "theirs"
    ((_, score),) = benchmark.bench([entrant], data, suites=("set/test",))
    assert (score.psnr, score.ssim, score.recursions) == (expected.psnr, expected.ssim, None)
    (results / "rain-1.png").rename(results / "4.png")
    with pytest.raises(UnrainError, match="no pictures for 1 of set/test"):
        list(benchmark.bench([entrant], data, suites=("set/test",)))
    Image.fromarray(found[1].rainy[:12]).save(results / "1.png")
    with pytest.raises(UnrainError, match="1 of set/test: the result is 20x12, the picture 20x24"):
        list(benchmark.bench([entrant], data, suites=("set/test",)))
    Image.fromarray(found[1].rainy).save(results / "norain-1.png")
    with pytest.raises(UnrainError, match=r"2 pictures for 1 of set/test: 1\.png, norain-1\.png"):
        list(benchmark.bench([entrant], data, suites=("set/test",)))


def test_a_checkpoint_is_measured_without_exporting_it(data, tmp_path):
    arguments = {"width": 24, "encoder": [1, 1], "decoder": [1]}
    net = build("rdmc_lite", **arguments)
    torch.nn.init.normal_(net.exit.weight, std=0.05)
    path = tmp_path / "run" / "weights.safetensors"
    path.parent.mkdir()
    save_file(net.state_dict(), path, {"network": "rdmc_lite", "arguments": json.dumps(arguments)})
    entrant = find(str(path))
    assert entrant.name == "run"
    rows = list(benchmark.bench([entrant], data, suites=("set/test",), recursions=(1, 3)))
    for passes, (_, score) in zip((1, 3), rows, strict=True):

        def restore(pair, passes=passes):
            rainy = torch.from_numpy(pair.rainy.transpose(2, 0, 1)[None] / np.float32(255))
            with torch.inference_mode():
                dry = net.eval()(rainy, passes)[-1][0].clamp(0, 1).numpy()
            return to_8_bit(dry.transpose(1, 2, 0))

        (expected,) = benchmark.measure(restore, "set/test", pairs(data, "set/test"), passes)
        assert (score.recursions, score.psnr, score.ssim) == (passes, expected.psnr, expected.ssim)
    with pytest.raises(UnrainError, match="run: only exported models have a card"):
        list(benchmark.bench([entrant], data, suites=("set/test",), card=True))


def test_a_peer_makes_all_its_passes(data, tmp_path):
    path = tmp_path / "theirs.safetensors"
    save_file(build("prenet").state_dict(), path)
    peer = find_peer(f"prenet:{path}")
    scores = [score for _, score in benchmark.bench([peer], data, suites=("set/test",))]
    assert [score.recursions for score in scores] == [6]
    scores = [score for _, score in benchmark.bench([peer], data, suites=("set/test",), recursions=(2,))]
    assert [score.recursions for score in scores] == [2]


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


def test_the_command_prints_every_score_and_notes_it_in_the_card(data, tmp_path, model_folder, capsys):
    shutil.copytree(model_folder, tmp_path / "models")
    tiny = tmp_path / "models" / "tiny.onnx"
    card = tiny.with_suffix(".json")
    arguments = ["bench", str(tiny), "--data", str(data), "--suite", "set/test", "--suite", "photos"]
    assert cli.main([*arguments, "--recursions", "1", "--recursions", "2", "--card"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1 + 4
    scores = json.loads(card.read_text())["scores"]
    assert set(scores) == {"set/test T1", "set/test T2", "photos T1", "photos T2"}
    assert scores["set/test T1"]["pictures"] == 3
    peer = tmp_path / "peer.safetensors"
    save_file(build("prenet").state_dict(), peer)
    assert cli.main([*arguments, "--json", "--peer", f"prenet:{peer}", "--truncate"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["model"], row["suite"], row["truncated"]) for row in rows] == [
        (model, suite, truncated)
        for suite in ("set/test", "photos")
        for model in ("tiny", "peer")
        for truncated in (False, True)
    ]


def test_unknown_suites_are_refused(data):
    with pytest.raises(UnrainError, match="holds none of rain100l/test"):
        benchmark.find_suites(data, ())
    with pytest.raises(UnrainError, match="none: no such folder"):
        benchmark.suite_pairs(data, "none")


def test_a_packed_set_is_not_taken_for_photographs(tmp_path):
    """Its source pictures, both sides in one, lie in the folder that has the set's name."""
    both = np.random.default_rng(0).integers(0, 256, (16, 40, 3), dtype=np.uint8)
    folder = tmp_path / "set" / "test"
    folder.mkdir(parents=True)
    Image.fromarray(both).save(folder / "1.png")
    row = {"set": "set/test", "name": "1", "kind": "side", "rain": "set/test/1.png"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
    (pair,) = benchmark.suite_pairs(tmp_path, "set/test")
    assert (pair.clean == both[:, :20]).all()
    assert (pair.rainy == both[:, 20:]).all()
