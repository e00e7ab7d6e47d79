"""Checkpoint to ONNX: the same numbers, no BatchNorm, all or nothing on the disk."""

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from toys import natural
from unrain.derainer import Derainer
from unrain.errors import UnrainError, UsageError
from unrain.lab import checkpoint, export
from unrain.lab.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from unrain.lab.export import export_checkpoint, measure_halo
from unrain.lab.nets import build
from unrain.lab.nets.layers import RecursiveNet

pytestmark = pytest.mark.slow

SMALL = {
    "rdmc": {"width": 2, "recursions": 2, "dilations": [1, 3]},
    "rdmc_lite": {"width": 12, "encoder": [1, 1, 1], "decoder": [1, 1], "recursions": 2},
}


def trained(name):
    """A network whose every weight and BatchNorm statistic differs from its start."""
    torch.manual_seed(0)
    net = build(name, **SMALL[name])
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net.eval().requires_grad_(False)


def write_checkpoint(path, name, net):
    header = {
        "network": name,
        "arguments": json.dumps(SMALL[name]),
        "card": '{"steps": 7, "licence": "none"}',
    }
    save_file(net.state_dict(), path, header)
    return path


@pytest.fixture(scope="module", params=sorted(SMALL))
def exported(request, tmp_path_factory):
    """The network, and the file it was exported to."""
    folder = tmp_path_factory.mktemp("export")
    net = trained(request.param)
    checkpoint = write_checkpoint(folder / "weights.safetensors", request.param, net)
    card = {"licence": "Apache-2.0", "halo": -5}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_PROBE_SIDE", 256)
        patch.setattr(export, "_PROBE_CUT", 96)
        path = export_checkpoint(checkpoint, folder / "zoo" / "small.onnx", card=card)
    return net, path


@pytest.mark.parametrize("height, width", [(1, 1), (33, 50), (97, 61)])
@pytest.mark.parametrize("recursions", [1, 3])
def test_the_derainer_gives_what_pytorch_gives(exported, height, width, recursions):
    net, path = exported
    image = natural(height, width) / np.float32(255)
    expected = net(torch.from_numpy(image).permute(2, 0, 1)[None], recursions)[-1][0].permute(1, 2, 0)
    result = Derainer(path, recursions=recursions)(image)
    assert np.abs(result - expected.clamp(0, 1).numpy()).max() < 1e-3


def test_tiles_of_an_exported_network_equal_the_whole(exported):
    _, path = exported
    halo = json.loads(path.with_suffix(".json").read_text())["halo"]
    random = np.random.default_rng(0)
    for image in (natural(211, 307), random.integers(0, 256, (211, 307, 3), np.uint8)):
        whole = Derainer(path)(image)
        tiled = Derainer(path, tile=2 * halo + 64)(image)
        assert np.abs(whole.astype(int) - tiled).max() <= 1


def test_a_batch_of_two_is_two_pictures(exported):
    net, path = exported
    session = ort.InferenceSession(path)
    rainy, estimate = torch.rand(2, 3, 48, 80), torch.rand(2, 3, 48, 80)
    feeds = {"rainy": rainy.numpy(), "estimate": estimate.numpy()}
    (together,) = session.run(None, feeds)
    np.testing.assert_allclose(together, net.step(rainy, estimate).numpy(), atol=1e-3)
    for i in range(2):
        (alone,) = session.run(None, {name: values[i : i + 1] for name, values in feeds.items()})
        np.testing.assert_allclose(together[i], alone[0], atol=1e-5)


def test_the_file_holds_all_it_needs_and_no_batchnorm_or_paths(exported):
    net, path = exported
    network = onnx.load(path, load_external_data=False)
    assert "BatchNormalization" not in {node.op_type for node in network.graph.node}
    assert not any(tensor.external_data for tensor in network.graph.initializer)
    assert b"site-packages" not in path.read_bytes()
    inside = json.loads(network.metadata_props[0].value)
    card = json.loads(path.with_suffix(".json").read_text())
    assert inside == {key: card[key] for key in ("multiple", "halo", "recursions", "recursive", "levels")}
    assert card["parameters"] == sum(parameter.numel() for parameter in net.parameters())
    assert card["licence"] == "Apache-2.0" and card["name"] == "small"
    assert card["halo"] > 0
    assert {file.name for file in path.parent.iterdir()} == {"small.onnx", "small.json"}


def test_fixed_recursions_are_unrolled_into_one_step(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "measure_halo", lambda net, recursions: 64)
    monkeypatch.setitem(SMALL, "rdmc_lite", {"width": 12, "encoder": [1, 1], "decoder": [1]})
    net = trained("rdmc_lite")
    checkpoint = write_checkpoint(tmp_path / "weights.safetensors", "rdmc_lite", net)
    path = export_checkpoint(checkpoint, tmp_path / "fixed.onnx", recursions=2)
    assert [port.name for port in ort.InferenceSession(path).get_inputs()] == ["rainy"]
    image = natural(45, 70) / np.float32(255)
    expected = net(torch.from_numpy(image).permute(2, 0, 1)[None], 2)[-1][0].permute(1, 2, 0)
    derainer = Derainer(path)
    assert derainer.recursions == 1
    assert np.abs(derainer(image) - expected.clamp(0, 1).numpy()).max() < 1e-3
    with pytest.raises(UnrainError, match="recursions is 3"):
        Derainer(path, recursions=3)


def test_a_lightning_checkpoint_gives_the_same_network(tmp_path):
    net = trained("rdmc_lite")
    content = {
        "state_dict": {f"net.{name}": values for name, values in net.state_dict().items()},
        "unrain": {"network": "rdmc_lite", "arguments": SMALL["rdmc_lite"], "card": {"steps": 7}},
        "current_model_state": {},
    }
    torch.save(content, tmp_path / "last.ckpt")
    loaded = load_checkpoint(tmp_path / "last.ckpt")
    assert loaded.network == "rdmc_lite" and loaded.arguments == SMALL["rdmc_lite"]
    assert loaded.card == {"steps": 7}
    for key, values in loaded.net.state_dict().items():
        assert torch.equal(values, net.state_dict()[key]), key


class Shift(RecursiveNet):
    """Takes its rain from pixels that lie a known number of columns away."""

    def __init__(self, distance):
        super().__init__(multiple=8, recursions=1)
        self.distance = distance

    def step(self, rainy, estimate):
        padded = nn.functional.pad(estimate, (self.distance, self.distance))
        return rainy - 0.1 * (padded[..., : -2 * self.distance] + padded[..., 2 * self.distance :])


@pytest.mark.parametrize("distance, halo", [(8, 16), (9, 24), (50, 64), (200, 208)])
def test_the_halo_of_a_known_network(distance, halo):
    assert measure_halo(Shift(distance).eval()) == halo


def test_the_halo_of_unrolled_recursions_is_that_of_all_together():
    assert measure_halo(Shift(9).eval(), recursions=2) == 32


def test_a_network_that_sees_too_far_is_refused():
    class Mean(RecursiveNet):
        def step(self, rainy, estimate):
            return rainy - estimate.mean((2, 3), keepdim=True)

    with pytest.raises(UnrainError, match="farther"):
        measure_halo(Mean(multiple=8, recursions=1).eval())


def test_weights_are_stored_in_half_precision(exported):
    _, path = exported
    sizes = {"half": 0, "single": 0}
    for weights in onnx.load(path).graph.initializer:
        values = onnx.numpy_helper.to_array(weights)
        if values.dtype.kind == "f":
            sizes["half" if values.dtype == np.float16 else "single"] += values.size
    assert sizes["half"] > 20 * sizes["single"]
    assert json.loads(path.with_suffix(".json").read_text())["weights_stored"] == "half"


def test_weights_to_train_on_from_are_stored_in_half_precision(tmp_path):
    net = trained("rdmc")
    checkpoint = write_checkpoint(tmp_path / "weights.safetensors", "rdmc", net)
    half = export_checkpoint(checkpoint, tmp_path / "half.safetensors")
    assert half.stat().st_size < 0.6 * checkpoint.stat().st_size
    with pytest.raises(UsageError, match="leave it out"):
        export_checkpoint(checkpoint, tmp_path / "half.safetensors", recursions=2)
    again = load_checkpoint(half)
    assert (again.network, again.card) == ("rdmc", {"steps": 7, "licence": "none"})
    for name, value in again.net.state_dict().items():
        assert value.dtype == net.state_dict()[name].dtype
        torch.testing.assert_close(value, net.state_dict()[name], rtol=1e-3, atol=1e-6)


def test_the_mean_of_several_runs_is_written(tmp_path):
    cards = (
        {"recipe": "two.toml", "steps": 5, "went_on_from": {"recipe": "one.toml", "steps": 3}},
        {"recipe": "one.toml", "steps": 3, "wall_time": 1},
        {"recipe": "other.toml", "steps": 4, "wall_time": 2},
    )
    paths, states = [], []
    for number, card in enumerate(cards):
        net = trained("rdmc")
        for value in net.state_dict().values():
            value += number
        states.append({name: value.clone() for name, value in net.state_dict().items()})
        paths.append(tmp_path / f"{number}.safetensors")
        save_checkpoint(paths[-1], Checkpoint(net, "rdmc", SMALL["rdmc"], card))
    made = load_checkpoint(export_checkpoint(paths[0], tmp_path / "mean.safetensors", others=paths[1:]))
    for name, value in made.net.state_dict().items():
        if value.is_floating_point():
            expected = sum(state[name].double() for state in states) / 3
            torch.testing.assert_close(value.double(), expected, rtol=1e-3, atol=1e-6)
        else:
            assert (value == states[0][name]).all()
    assert made.card["mean_with"] == [
        {"recipe": "one.toml"},
        {"recipe": "other.toml", "steps": 4, "wall_time": 2},
    ]
    assert made.card["went_on_from"] == cards[0]["went_on_from"]


def test_a_mean_has_the_shares_and_settings_that_were_asked_for(tmp_path):
    paths, states = [], []
    for number in range(2):
        net = trained("rdmc_lite")
        for value in net.state_dict().values():
            value += number
        states.append({name: value.clone() for name, value in net.state_dict().items()})
        paths.append(tmp_path / f"{number}.safetensors")
        arguments = SMALL["rdmc_lite"] | {"threshold": float(number)}
        save_checkpoint(paths[-1], Checkpoint(net, "rdmc_lite", arguments, {"recipe": f"{number}.toml"}))
    out = tmp_path / "mean.safetensors"
    with pytest.raises(UnrainError, match=r"0\.safetensors, .*1\.safetensors: their networks differ"):
        export_checkpoint(paths[0], out, others=paths[1:], shares=(3, 1))
    export_checkpoint(paths[0], out, others=paths[1:], shares=(3, 1), arguments={"threshold": 1.5})
    made = load_checkpoint(out)
    for name, value in made.net.state_dict().items():
        expected = 0.75 * states[0][name].double() + 0.25 * states[1][name].double()
        torch.testing.assert_close(value.double(), expected, rtol=1e-3, atol=1e-6)
    assert made.arguments == SMALL["rdmc_lite"] | {"threshold": 1.5}
    assert made.net.threshold == 1.5
    assert made.card["mean_with"] == [{"recipe": "1.toml", "share": 0.25}]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"shares": (1,)}, "1 shares for 2 checkpoints"),
        ({"shares": (1, 0)}, "each share must be a number above 0"),
        ({"shares": (1, float("nan"))}, "each share must be a number above 0"),
        ({"arguments": {"treshold": 1}}, "rdmc_lite does not take treshold = 1 with these weights"),
        ({"arguments": {"width": 24}}, "rdmc_lite does not take width = 24 with these weights"),
    ],
)
def test_what_makes_no_mean_is_said(options, told, tmp_path):
    one = write_checkpoint(tmp_path / "one.safetensors", "rdmc_lite", trained("rdmc_lite"))
    with pytest.raises(UnrainError, match=rf"one\.safetensors: {told}"):
        export_checkpoint(one, tmp_path / "mean.safetensors", others=[one], **options)
    assert not (tmp_path / "mean.safetensors").exists()


def test_networks_that_differ_have_no_mean(tmp_path):
    one = write_checkpoint(tmp_path / "one.safetensors", "rdmc", trained("rdmc"))
    other = write_checkpoint(tmp_path / "other.safetensors", "rdmc_lite", trained("rdmc_lite"))
    with pytest.raises(UnrainError, match=r"one\.safetensors, .*other\.safetensors: their networks differ"):
        export_checkpoint(one, tmp_path / "mean.safetensors", others=[other])
    assert not (tmp_path / "mean.safetensors").exists()


def test_weights_that_half_precision_would_spoil_stay_single(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "measure_halo", lambda net, recursions: 64)
    net = trained("rdmc_lite")
    # 70,000 is infinite in half precision.
    net.encoders[0][0].branches[0].weight.mul_(0).add_(70_000)
    net.encoders[0][0].mix.weight.mul_(1e-9)
    checkpoint = write_checkpoint(tmp_path / "weights.safetensors", "rdmc_lite", net)
    path = export_checkpoint(checkpoint, tmp_path / "wide.onnx")
    assert json.loads(path.with_suffix(".json").read_text())["weights_stored"] == "single"
    kinds = {onnx.numpy_helper.to_array(one).dtype for one in onnx.load(path).graph.initializer}
    assert np.dtype(np.float16) not in kinds


def test_a_difference_from_pytorch_is_refused_and_nothing_written(exported, tmp_path, monkeypatch):
    _, path = exported
    monkeypatch.setattr(export, "_to_onnx", lambda net, recursions: onnx.load(path))
    monkeypatch.setattr(export, "measure_halo", lambda net, recursions: 32)
    checkpoint = path.parent.parent / "weights.safetensors"
    assert export_checkpoint(checkpoint, tmp_path / "good" / "small.onnx").exists()
    monkeypatch.setattr(export, "PARITY", 0.0)
    with pytest.raises(UnrainError, match="differs from PyTorch"):
        export_checkpoint(checkpoint, tmp_path / "bad" / "small.onnx")
    assert not list((tmp_path / "bad").iterdir())


@pytest.mark.parametrize("name", ["last.ckpt", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", None])
def test_what_is_no_checkpoint_is_refused(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UnrainError, match=name) as caught:
        load_checkpoint(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_refused(tmp_path):
    path = write_checkpoint(tmp_path / "weights.safetensors", "rdmc_lite", trained("rdmc"))
    with pytest.raises(UnrainError, match="not a checkpoint of this version"):
        load_checkpoint(path)
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(UnrainError, match="lacks 'network'"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "arguments",
    [{"width": 4096, "encoder": [9, 9]}, {"width": 10**9}, {"encoder": [10**9]}, {"encoder": [[10**12]]}],
)
def test_a_header_that_asks_for_a_far_larger_network_is_refused_before_that_is_built(
    tmp_path, monkeypatch, arguments
):
    built = []

    def build(name, real=checkpoint.build, **arguments):
        net = real(name, **arguments)
        built.append(next(net.parameters()).device.type)
        return net

    monkeypatch.setattr(checkpoint, "build", build)
    path = tmp_path / "weights.safetensors"
    header = {"network": "rdmc_lite", "arguments": json.dumps(arguments)}
    save_file({"weight": torch.zeros(1)}, path, header)
    with pytest.raises(UnrainError, match="not a checkpoint of this version") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert "cpu" not in built


def test_a_safetensors_header_with_huge_shapes_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    for shape, end in (([10**15, 10**15], 4), ([2**62, 4], 2**64 - 1), ([1], 4)):
        about = {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}
        header = json.dumps({"weight": about}).encode()
        path.write_bytes((len(header) + (10**17 if shape == [1] else 0)).to_bytes(8, "little") + header)
        with pytest.raises(UnrainError, match=r"weights\.safetensors: not a checkpoint") as caught:
            load_checkpoint(path)
        assert "\n" not in str(caught.value)


def test_a_checkpoint_runs_no_code(tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    torch.save({"state_dict": Harm()}, tmp_path / "last.ckpt")
    with pytest.raises(UnrainError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "last.ckpt")
    assert not (tmp_path / "harm").exists()


def test_names_and_numbers_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(UnrainError, match=r"ends in \.onnx"):
        export_checkpoint(tmp_path / "last.ckpt", tmp_path / "net.bin")
    with pytest.raises(UnrainError, match="recursions"):
        export_checkpoint(tmp_path / "last.ckpt", tmp_path / "net.onnx", recursions=0)
