"""Devices: which are there, which is taken, and what is said where one cannot be had."""

import json
import warnings
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest

from unrain import cli, zoo
from unrain.derainer import Derainer
from unrain.devices import AUTO, INSTALL, Device, DeviceWarning, Processor, parse
from unrain.engine import choose, onnx_runtime, open_engine
from unrain.errors import UnrainError, UsageError


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A cache of this test's own, and the real list for `auto`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(choose, "AUTO", AUTO)


class Fake:
    """An engine that gives the rainy picture back, or something else."""

    multiple, halo, recursions, recursive, levels = 8, 8, 1, True, 1

    def __init__(self, model=None, shift=0.0):
        self.inner = open_engine(model, Processor("cpu", threads=1)) if model else None
        self.shift = shift

    def step(self, rainy, estimate):
        return self.inner.step(rainy, estimate) + np.float32(self.shift)


@pytest.mark.parametrize(
    "text, device",
    [
        ("auto", None),
        ("cpu", Device("cpu")),
        ("cuda:1", Device("cuda", "1")),
        ("openvino:GPU", Device("openvino", "GPU")),
        ("torch:cuda:1", Device("torch", "cuda:1")),
    ],
)
def test_names_of_devices(text, device):
    assert parse(text) == device
    assert device is None or str(device) == text


@pytest.mark.parametrize(
    "text", ["", "gpu", "cuda:", "cuda:x", "cpu:1", "coreml:0", "CUDA", "auto:1", "cuda:-1"]
)
def test_no_such_device(text):
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert "give" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["cuda", "tensorrt", "rocm", "directml", "coreml"])
def test_what_is_not_installed_is_an_error_with_the_line_that_installs_it(tiny_model, kind, monkeypatch):
    monkeypatch.setattr(choose.platform, "system", lambda: "Linux")
    with pytest.raises(UnrainError) as caught:
        open_engine(zoo.find(tiny_model), Processor(kind))
    said = str(caught.value)
    assert said.startswith(f"{kind}: ")
    assert INSTALL[kind] in said if kind in ("cuda", "tensorrt", "rocm") else "give another device" in said


@pytest.mark.parametrize("kind, library", [("openvino", "openvino"), ("torch", "torch")])
def test_a_missing_library_is_named(tiny_model, kind, library, monkeypatch):
    monkeypatch.setattr(choose.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnrainError, match=f"{kind}: {library} is not installed: pip install 'unrain"):
        open_engine(zoo.find(tiny_model), Processor(kind))


def test_a_precision_that_the_device_does_not_know(tiny_model):
    with pytest.raises(UnrainError, match="cpu: computes in fp32, not in bf16; give --precision auto"):
        open_engine(zoo.find(tiny_model), Processor("cpu", "bf16"))
    with pytest.raises(UsageError, match="fp8: no such precision"):
        open_engine(zoo.find(tiny_model), Processor("cpu", "fp8"))


def test_the_cpu_alone_needs_no_test(tiny_model, fresh, monkeypatch):
    monkeypatch.setattr(choose, "missing", lambda kind: "" if kind == "cpu" else "is not installed")
    monkeypatch.setattr(choose, "self_test", None)
    assert open_engine(zoo.find(tiny_model)).device == "cpu"


def openings(monkeypatch, **engines):
    """Let `auto` find these devices beside the CPU: an engine each, or an error."""
    monkeypatch.setattr(
        choose, "missing", lambda kind: "" if kind in {"cpu", *engines} else "is not installed"
    )
    really = choose._open
    opened = []

    def opening(model, device, processor):
        opened.append(device.kind)
        if device.kind not in engines:
            return really(model, device, processor)
        if isinstance(engines[device.kind], Exception):
            raise engines[device.kind]
        return engines[device.kind]

    monkeypatch.setattr(choose, "_open", opening)
    return opened


def test_the_fastest_is_taken_and_remembered(tiny_model, fresh, monkeypatch):
    fast = Fake(zoo.find(zoo.DEFAULT))
    opened = openings(monkeypatch, cuda=fast)
    times = iter([1.0, 0.5, 2.0])
    monkeypatch.setattr(choose, "_timed", lambda engine, rainy: (next(times), engine.step(rainy, rainy)))
    assert open_engine(zoo.find(tiny_model)) is fast
    assert opened == ["cpu", "cuda", "cuda"]
    # The second time nothing is tested.
    assert open_engine(zoo.find(tiny_model)) is fast
    assert opened == ["cpu", "cuda", "cuda", "cuda"]
    # With another version it is.
    monkeypatch.setattr(choose, "_installed", lambda: ["onnxruntime-99.dist-info"])
    with pytest.raises(StopIteration):
        monkeypatch.setattr(choose, "_timed", lambda engine, rainy: next(iter([])))
        open_engine(zoo.find(tiny_model))


def test_a_device_that_is_slower_than_the_cpu_is_not_taken(tiny_model, fresh, monkeypatch):
    openings(monkeypatch, coreml=Fake(zoo.find(zoo.DEFAULT)))
    times = iter([1.0, 3.0])
    monkeypatch.setattr(choose, "_timed", lambda engine, rainy: (next(times), engine.step(rainy, rainy)))
    assert open_engine(zoo.find(tiny_model)).device == "cpu"


@pytest.mark.parametrize(
    "broken, words",
    [(UnrainError("cuda: no driver"), "no driver"), (RuntimeError("a\nb"), "a"), (OSError(), "")],
)
def test_a_broken_device_is_left_out_and_that_is_said(tiny_model, fresh, monkeypatch, broken, words):
    openings(monkeypatch, cuda=broken)
    for _ in range(2):  # from the test, then from the cache
        with pytest.warns(DeviceWarning) as said:
            assert open_engine(zoo.find(tiny_model)).device == "cpu"
        (line,) = [str(one.message) for one in said]
        assert line.startswith("cuda is left out: ") and words in line and line.endswith("see unrain devices")


def test_a_device_that_broke_since_it_was_tested_is_left_out(tiny_model, fresh, monkeypatch):
    fast = Fake(zoo.find(zoo.DEFAULT))
    openings(monkeypatch, cuda=fast)
    times = iter([1.0, 0.5])
    monkeypatch.setattr(choose, "_timed", lambda engine, rainy: (next(times), engine.step(rainy, rainy)))
    assert open_engine(zoo.find(tiny_model)) is fast
    openings(monkeypatch, cuda=UnrainError("cuda: the driver is gone"))
    times = iter([1.0])
    with pytest.warns(DeviceWarning, match="cuda is left out: the driver is gone"):
        assert open_engine(zoo.find(tiny_model)).device == "cpu"


def test_a_file_that_the_fastest_device_refuses_is_an_error(tiny_model, fresh, monkeypatch):
    openings(monkeypatch, cuda=Fake(zoo.find(zoo.DEFAULT)))
    monkeypatch.setattr(
        choose, "_timed", lambda engine, rainy: (1.0 - isinstance(engine, Fake), engine.step(rainy, rainy))
    )
    opening = choose._open

    def refusing(model, device, processor):
        if device.kind == "cuda" and model.name == "tiny":
            raise UnrainError("tiny.onnx: no model")
        return opening(model, device, processor)

    monkeypatch.setattr(choose, "_open", refusing)
    with pytest.raises(UnrainError, match=r"^tiny\.onnx: no model$"):
        open_engine(zoo.find(tiny_model))


def test_a_library_that_does_not_load_is_one_line(tiny_model, monkeypatch):
    def broken(name):
        raise RuntimeError(f"{name} is too old\nfor this")

    monkeypatch.setattr(choose, "missing", lambda kind: "")
    monkeypatch.setattr(choose.importlib, "import_module", broken)
    for name, module in (("openvino", "unrain.engine.openvino"), ("torch:cpu", "unrain.lab.torch_graph")):
        with pytest.raises(UnrainError) as caught:
            open_engine(zoo.find(tiny_model), Processor(name))
        assert str(caught.value).startswith(f"{name}: cannot be loaded (RuntimeError: {module} is too old); ")


def test_a_device_with_wrong_results_is_left_out(tiny_model, fresh, monkeypatch):
    openings(monkeypatch, directml=Fake(zoo.find(zoo.DEFAULT), shift=0.02))
    with pytest.warns(
        DeviceWarning, match=r"directml is left out: its result is 3[34]\.\d dB from the CPU's"
    ):
        assert open_engine(zoo.find(tiny_model)).device == "cpu"


def test_results_that_are_no_numbers_are_wrong(tiny_model, fresh, monkeypatch):
    openings(monkeypatch, directml=Fake(zoo.find(zoo.DEFAULT), shift=np.nan))
    with pytest.warns(DeviceWarning, match="directml is left out"):
        assert open_engine(zoo.find(tiny_model)).device == "cpu"


def test_a_cache_that_cannot_be_written_is_done_without(tiny_model, fresh, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder should be")
    openings(monkeypatch, coreml=Fake(zoo.find(zoo.DEFAULT)))
    assert open_engine(zoo.find(tiny_model)) is not None


def test_a_damaged_cache_is_written_anew(tiny_model, fresh, tmp_path, monkeypatch):
    opened = openings(monkeypatch, coreml=Fake(zoo.find(zoo.DEFAULT)))
    open_engine(zoo.find(tiny_model))
    (kept,) = (tmp_path / "cache").rglob("*.json")
    for content in ("{", "[]", "{}", '{"no such device": 0.1}'):
        kept.write_text(content)
        opened.clear()
        open_engine(zoo.find(tiny_model))
        assert opened[:2] == ["cpu", "coreml"]


class Session:
    """ONNX Runtime as it is on a machine with a GPU, or with one that does not start."""

    starts = True

    def __init__(self, data, sess_options, providers, enable_fallback):
        assert not enable_fallback
        ((self.provider, self.options),) = providers
        self.inner = ort_session(data, sess_options=sess_options, providers=["CPUExecutionProvider"])

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def get_providers(self):
        return [self.provider] * self.starts + ["CPUExecutionProvider"]


ort_session = ort.InferenceSession


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that ONNX Runtime would find, computed by the CPU."""
    names = ["CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnx_runtime.ort, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnx_runtime.ort, "InferenceSession", Session)


def test_a_provider_gets_its_number_and_options(tiny_model, gpu):
    engine = open_engine(zoo.find(tiny_model), Processor("cuda:2"))
    assert engine._session.provider == "CUDAExecutionProvider"
    assert engine._session.options == {"device_id": "2", "use_tf32": "0"}
    assert (engine.device, engine.precision) == ("cuda:2", "fp32")
    half = open_engine(zoo.find(tiny_model), Processor("tensorrt", "fp16"))
    assert half._session.options == {"device_id": "0", "trt_fp16_enable": "1"}
    picture = np.zeros((16, 16, 3), np.uint8)
    plain = Derainer(tiny_model, device="cpu")(picture)
    np.testing.assert_array_equal(Derainer(engine)(picture), plain)


def test_a_provider_that_gives_way_to_the_cpu_is_an_error(tiny_model, gpu, monkeypatch):
    monkeypatch.setattr(Session, "starts", False)
    with pytest.raises(
        UnrainError,
        match=r"cuda: ONNX Runtime cannot start CUDAExecutionProvider; .*\[cuda,cudnn\].*--device cpu",
    ):
        open_engine(zoo.find(tiny_model), Processor("cuda"))


def test_a_provider_that_raises_is_an_error_unless_the_file_is_what_is_wrong(
    tiny_model, gpu, monkeypatch, tmp_path
):
    def refuse(data, sess_options, providers, **more):
        if providers == ["CPUExecutionProvider"]:
            return ort_session(data, sess_options=sess_options, providers=providers)
        raise RuntimeError("libcublas.so.13 is missing")

    monkeypatch.setattr(onnx_runtime.ort, "InferenceSession", refuse)
    with pytest.raises(UnrainError, match="tensorrt: ONNX Runtime cannot start TensorrtExecutionProvider"):
        open_engine(zoo.find(tiny_model), Processor("tensorrt"))
    broken = tmp_path / "a.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(UnrainError, match=r"a\.onnx: not a model that ONNX Runtime can open"):
        open_engine(zoo.Model("a", broken, {}), Processor("tensorrt"))


def test_a_plugin_is_registered_once_and_given_its_device(tiny_model, monkeypatch):
    registered, added = [], []
    package = SimpleNamespace(get_library_path=lambda: "/lib/rtx.so")
    monkeypatch.setattr(onnx_runtime.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(onnx_runtime.importlib, "import_module", lambda name: package)
    name = "NvTensorRTRTXExecutionProvider"

    def register(name, path):
        registered.append((name, path))

    def devices():
        return [SimpleNamespace(ep_name=name, number=i) for i in range(2) if registered]

    class Options:
        def add_session_config_entry(self, key, value):
            pass

        def add_provider_for_devices(self, chosen, options):
            added.extend(one.number for one in chosen)

    class PluginSession:
        def __init__(self, data, sess_options):
            self.inner = ort_session(data, providers=["CPUExecutionProvider"])

        def __getattr__(self, attribute):
            return getattr(self.inner, attribute)

        def get_providers(self):
            return [name]

    monkeypatch.setattr(onnx_runtime.ort, "register_execution_provider_library", register)
    monkeypatch.setattr(onnx_runtime.ort, "get_ep_devices", devices)
    monkeypatch.setattr(onnx_runtime.ort, "SessionOptions", Options)
    monkeypatch.setattr(onnx_runtime.ort, "InferenceSession", PluginSession)
    for number in ("0", "1"):
        open_engine(zoo.find(tiny_model), Processor(f"tensorrt:{number}"))
    assert registered == [(name, "/lib/rtx.so")] and added == [0, 1]
    with pytest.raises(UnrainError, match="tensorrt:2: 2 of them here; give another device"):
        open_engine(zoo.find(tiny_model), Processor("tensorrt:2"))


def test_the_command_says_what_it_runs_on_and_what_it_left_out(cwd, tiny_model, capsys, monkeypatch):
    import toys

    toys.flat_picture(cwd / "a.png", 100)
    assert cli.main(["a.png", "--model", str(tiny_model), "-v", "--device", "cpu"]) == 0
    assert "running on cpu in fp32" in capsys.readouterr().err
    monkeypatch.setattr(choose, "AUTO", AUTO)
    openings(monkeypatch, rocm=OSError("no such card"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cwd / "cache"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cli.main(["a.png", "--model", str(tiny_model), "-q", "--overwrite"]) == 0
    assert capsys.readouterr().err == ("unrain: rocm is left out: no such card; see unrain devices\n")


@pytest.mark.parametrize(
    "arguments, code",
    [(["--device", "gpu"], 2), (["--precision", "int4"], 2), (["--device", "cuda:9"], 1)],
)
def test_a_wrong_device_is_one_line(cwd, tiny_model, capsys, arguments, code):
    import toys

    toys.flat_picture(cwd / "a.png", 100)
    assert cli.main(["a.png", "--model", str(tiny_model), *arguments]) == code
    (line,) = capsys.readouterr().err.splitlines()[:1]
    assert line.startswith("unrain: error: ")
    assert not (cwd / "a_derained.png").exists()


def test_devices_are_listed(capsys, monkeypatch, fresh):
    monkeypatch.setattr(choose, "self_test", lambda kinds, processor: dict.fromkeys(kinds, 0.012))
    monkeypatch.setattr(choose.platform, "system", lambda: "Linux")
    assert cli.main(["devices"]) == 0
    out = capsys.readouterr().out
    here, _, elsewhere = out.partition("Not here")
    assert (
        "  cpu       any processor, by ONNX Runtime: 12 ms for 256x256" in here
        and "  coreml" in elsewhere
        and "only on a Mac" in elsewhere
    )
    assert INSTALL["cuda"] in elsewhere
    assert cli.main(["devices", "--json"]) == 0
    found = {one["device"]: one for one in json.loads(capsys.readouterr().out)}
    assert set(found) == set(INSTALL) and found["cpu"]["installed"] and not found["cuda"]["installed"]


def test_a_device_that_does_not_start_is_listed_with_the_reason(capsys, monkeypatch, fresh):
    openings(monkeypatch, cuda=UnrainError("cuda: no card; buy one"))
    monkeypatch.setattr("unrain.cli.devices.AUTO", ("cuda", "cpu"))
    assert cli.main(["devices"]) == 0
    out = capsys.readouterr().out
    assert f"no card: {INSTALL['cuda']}" in out and "buy" not in out


def test_looking_at_the_devices_tests_what_was_left_out_anew(tiny_model, capsys, monkeypatch, fresh):
    openings(monkeypatch, cuda=UnrainError("cuda: no card"))
    with pytest.warns(DeviceWarning, match="cuda is left out"):
        open_engine(zoo.find(tiny_model), Processor(threads=1))
    mended = Fake(zoo.find(zoo.DEFAULT))
    openings(monkeypatch, cuda=mended)
    monkeypatch.setattr(
        choose, "_timed", lambda engine, rainy: (1.0 - isinstance(engine, Fake), engine.step(rainy, rainy))
    )
    with pytest.warns(DeviceWarning, match="cuda is left out"):
        assert open_engine(zoo.find(tiny_model), Processor(threads=1)).device == "cpu"
    monkeypatch.setattr("unrain.cli.devices.AUTO", ("cuda", "cpu"))
    assert cli.main(["devices"]) == 0
    assert open_engine(zoo.find(tiny_model), Processor(threads=1)) is mended


def test_the_packages_that_bring_devices_are_found_with_their_versions(monkeypatch, tmp_path):
    (own,) = [name for name in choose._installed() if name.startswith("onnxruntime-")]
    assert own == f"onnxruntime-{metadata.version('onnxruntime')}.dist-info"
    for name in ("onnxruntime_gpu-1.2.3.dist-info", "openvino_dev-1.0.dist-info", "openvino-7.dist-info"):
        (tmp_path / name).mkdir()
    (tmp_path / "archive.zip").write_bytes(b"")
    monkeypatch.setattr("sys.path", [str(tmp_path / "missing"), str(tmp_path / "archive.zip"), str(tmp_path)])
    assert choose._installed() == ["onnxruntime_gpu-1.2.3.dist-info", "openvino-7.dist-info"]
