"""Fixtures that several tests share."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import onnx
import pytest

from toys import CONTRACT, tiny_network
from unrain import files
from unrain.derainer import Derainer
from unrain.errors import UnrainError

# Models that a developer added for himself are not those that are tested; tests that add some name a folder.
os.environ["UNRAIN_MODELS"] = str(Path(__file__).parent / "no-models")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of the tests' own, for what they start too; `auto` is the CPU in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("unrain.engine.choose.AUTO", ("cpu",))
        yield


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.onnx and its card tiny.json, as `unrain export` leaves them."""
    folder = tmp_path_factory.mktemp("models")
    onnx.save(tiny_network(), folder / "tiny.onnx")
    card = {"name": "tiny", "summary": "made by hand for tests", "network": "none", **CONTRACT}
    (folder / "tiny.json").write_text(json.dumps(card))
    return folder


@pytest.fixture(scope="session")
def tiny_model(model_folder: Path) -> Path:
    """The hand-made network's file; its card lies beside it."""
    return model_folder / "tiny.onnx"


@pytest.fixture
def cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one, so that paths are short."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def dies_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[type, int], AbstractContextManager[None]]:
    """What lets a run of a Lightning module die before a step: `with dies_at(Module, 4): train()`."""

    @contextmanager
    def dying(module: type, at: int) -> Iterator[None]:
        step = module.training_step

        def killed(self, batch, batch_idx):
            if self.global_step == at:
                raise RuntimeError("killed")
            return step(self, batch, batch_idx)

        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
            patch.setattr(module, "training_step", killed)
            yield

    return dying


@pytest.fixture
def abandoned() -> Callable[[Path], Path]:
    """What leaves a hidden file in a folder, as a run does that is killed while it writes."""

    def leave(folder: Path) -> Path:
        with files.replacing(folder / "result.png") as file:
            left = Path(file.name)
            kept = left.with_name(left.name.replace(".tmp", "0.tmp"))
            kept.write_bytes(b"half of it")
        (folder / "result.png").unlink()
        # A process sweeps each folder once, and this one stands for two.
        files._sweep.cache_clear()
        return kept

    return leave


@pytest.fixture
def derained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one with each picture; the second one kills the run."""
    done: list[int] = []

    def counted(self, image, real=Derainer.__call__):
        done.append(1)
        if len(done) == 2:
            raise UnrainError("killed")
        return real(self, image)

    monkeypatch.setattr(Derainer, "__call__", counted)
    return done


# Its event loop runs in the tests' own thread, where no other can until it ends.
@pytest.fixture(scope="module")
def browser():
    """A Chromium without a window, or a skip."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    # Playwright's own browsers are large downloads; a system's Chromium does.
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("needs a Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        arguments = ["--disable-dev-shm-usage", "--disable-gpu"]
        sync_api.expect.set_options(timeout=60_000)
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments, chromium_sandbox=False)
        yield browser
        browser.close()
