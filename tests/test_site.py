"""The documentation as a reader uses it: the site builds, its links lead somewhere, its commands work."""

import ast
import contextlib
import html.parser
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from cyclopts import MissingArgumentError
from PIL import Image

from toys import ROOT, natural
from unrain import cli, zoo
from unrain.cli import derain

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "examples/**/*.md", "integrations/**/*.md", "recipes/*.md")
    for path in ROOT.glob(pattern)
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"].keys()
# Commands are run in order, in a folder with a picture, a folder of pictures, a clip and a model.
RUN = {
    "README.md",
    "docs/index.md",
    "docs/photographs.md",
    "docs/processors.md",
    "docs/rdmc.md",
    "docs/semi-drdnet.md",
    "docs/train.md",
    "docs/video.md",
}
# Pages whose commands, other than those below, are not run as they are printed.
ELSEWHERE = {
    "docs/benchmark.md": "needs data: tests/lab/bench, tests/test_layer.py",
    "docs/cluster.md": "needs shares, Ray and object storage: tests/cluster",
    "examples/own_network/README.md": "needs an environment of its own: tests/lab/nets/test_own_network.py",
    "recipes/README.md": "needs data and a trained network: tests/lab/data/test_pairs.py, tests/lab/training",
}
NOT_RUN = {
    "serve": "runs until it is stopped: tests/web",
    "search": "needs data: tests/lab/test_search.py",
    "ablate": "needs data: tests/lab/test_ablate.py",
    "train": "needs data: tests/lab, the notebooks and the example of one's own network run it",
    "adapt": "needs data: tests/lab/test_adapt.py",
    "bench": "needs data: tests/lab/bench, the notebooks",
    "export": "needs a checkpoint: tests/lab/test_export.py, the notebooks",
    "live": "needs a camera: tests/live",
    "watch": "runs until it is stopped: tests/test_watch.py",
    "--install-completion": "writes into the shell's own files: tests/test_cli.py",
    "reproduce": "needs data: tests/lab/bench/test_reproduce.py",
    "-": "needs a pipe: tests/video/test_raw.py",
}


def blocks(path, *languages):
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [body for language, body in found if language in languages]


def commands(path):
    """Every call of unrain in a page's shell lines: its arguments, without placeholders such as `...`."""
    found = []
    for block in blocks(path, "sh", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;>")
            lexer.whitespace_split = True
            words = list(lexer)
            starts = [i for i, word in enumerate(words) if Path(word).name == "unrain"]
            for start in starts:
                if start and words[start - 1] in ("install", "-t", "-m"):
                    continue
                end = next((i for i in range(start, len(words)) if words[i][0] in "|&;>"), len(words))
                command = [word for word in words[start + 1 : end] if word != "..."]
                # Without arguments it is another program's argument: a folder or repository of that name.
                found += [command] if any(command) else []
    return found


def test_commands_are_found():
    every = [command for page in PAGES for command in commands(page)]
    assert len(every) > 60
    assert ["photo.jpg", "--compare"] in every and ["-", "--raw", "1280x720"] in every
    assert commands(ROOT / "README.md")[0] == ["examples/launch.jpg"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_have_options_that_exist(page):
    for words in commands(page):
        tokens = ["\0" if word == "-" else word for word in derain.spelled_out(words)]
        # A placeholder such as MODEL... stands for one of them, a variable for a number.
        tokens = [re.sub(r"\$\w+", "1", token.removesuffix("...")) for token in tokens]
        # A command that is spelled like an option has no parser of its own.
        if tokens != ["--install-completion"]:
            cli.app.parse_args(tokens, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_that_are_only_mentioned_exist(page):
    text = page.read_text(encoding="utf-8")
    for span in re.findall(r"`(unrain [^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)):
        words = [word.removesuffix("...") for word in shlex.split(span)[1:]]
        tokens = ["\0" if word == "-" else word for word in derain.spelled_out(words) if word]
        # The changelog names what it was once.
        if span != "unrain bench --speed":
            # What a command needs may be left out, but nothing is named that it has not.
            with contextlib.suppress(MissingArgumentError):
                cli.app.parse_args(tokens, exit_on_error=False, print_error=False)
    for extras in re.findall(r"unrain\[([\w,]+)\]", text):
        assert set(extras.split(",")) <= EXTRAS, extras
    for module in re.findall(r"python -m ([\w.]+)", text):
        path = Path(*module.split("."))
        homes = (ROOT / "src" / path, ROOT / path)
        known = any(home.with_suffix(".py").is_file() or (home / "__main__.py").is_file() for home in homes)
        assert known or module in ("venv", "pip", "http.server"), module
    for script in re.findall(r"python ([\w/]+\.py)", text):
        assert (ROOT / script).is_file(), script


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_code_and_recipes_can_be_read(page):
    for block in blocks(page, "python"):
        ast.parse(block)
    for block in blocks(page, "toml"):
        tomllib.loads(block)


@pytest.fixture
def reader(tmp_path, monkeypatch, tiny_model):
    """A reader's folder, and a zoo whose default is a hand-made network, so that all takes a moment."""
    weights = tmp_path / "weights"
    weights.mkdir()
    for name in (zoo.DEFAULT, "rdmc-lite-xs", "rdmc", "semi-drdnet-s"):
        for suffix in (".onnx", ".json"):
            shutil.copy(tiny_model.with_suffix(suffix), weights / f"{name}{suffix}")
    shutil.copytree(zoo.WEIGHTS / "score", weights / "score")
    here = tmp_path / "here"
    (here / "holiday" / "beach").mkdir(parents=True)
    (here / "examples").mkdir()
    for name in ("photo.jpg", "holiday/a.png", "holiday/beach/b.jpg", "examples/launch.jpg"):
        Image.fromarray(natural(48, 64)).save(here / name)
    for suffix in (".onnx", ".json"):
        shutil.copy(tiny_model.with_suffix(suffix), here / f"mine{suffix}")
    monkeypatch.setattr(zoo, "WEIGHTS", weights)
    monkeypatch.setenv("UNRAIN_MODELS", str(tmp_path / "models"))
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def clips(reader):
    av = pytest.importorskip("av")
    names = ["clip.mp4", "dashcam/one.mp4"]
    (reader / "dashcam").mkdir()
    for name in names:
        with av.open(str(reader / name), "w") as container:
            stream = container.add_stream("libx264", rate=2)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            for seed in range(4):
                frame = av.VideoFrame.from_ndarray(natural(64, 96, seed), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return names


@pytest.mark.parametrize("page", sorted(RUN))
def test_commands_work_one_after_the_other(reader, clips, page, capsys):
    ran = 0
    for words in commands(ROOT / page):
        if words[0] in NOT_RUN:
            continue
        # The clip is two seconds long, and the model of that example is named by what it is for.
        words = ["0:00" if word == "1:30" else word for word in words]
        if "MODEL" in words or "demo.mp4" in words:
            continue
        assert cli.main(words) == 0, (words, capsys.readouterr().err)
        ran += 1
    assert ran


def test_every_command_is_run_or_it_is_said_where():
    reasons = [*NOT_RUN.values(), *ELSEWHERE.values()]
    for named in re.findall(r"tests/[\w/.]+\w", " ".join(reasons)):
        assert (ROOT / named).exists(), named
    used = set()
    for page in PAGES:
        name = page.relative_to(ROOT).as_posix()
        left = [words for words in commands(page) if words[0] not in NOT_RUN]
        used |= {words[0] for words in commands(page)}
        assert name not in RUN or name not in ELSEWHERE
        assert bool(left) == (name in RUN or name in ELSEWHERE), (name, left)
    assert NOT_RUN.keys() <= used


@pytest.mark.parametrize("page", ["README.md", "docs/photographs.md"])
def test_python_works_as_it_is_printed(reader, page, capsys):
    for block in blocks(ROOT / page, "python"):
        exec(compile(block, page, "exec"), {"array": natural(48, 64)})


def test_every_message_in_troubleshooting_is_one_that_unrain_has():
    texts = []
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [one.value if isinstance(one, ast.Constant) else "\0" for one in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(messages) > 20
    for message in messages:
        assert any(message in text for text in texts), message


class Links(html.parser.HTMLParser):
    """What a page of the site loads, where it leads, and its anchors."""

    def __init__(self):
        super().__init__()
        self.loaded, self.leads, self.anchors, self.bare = [], [], set(), []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors.add(found.get("id"))
        if tag in ("script", "img", "iframe", "source", "video") and found.get("src"):
            self.loaded.append(found["src"])
        if tag == "link" and found.get("rel") not in ("canonical", "prev", "next", "edit"):
            self.loaded.append(found.get("href"))
        if tag == "a" and found.get("href"):
            self.leads.append(found["href"])
        if tag == "img" and not found.get("alt"):
            self.bare.append(found.get("src"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built strictly: a warning is an error."""
    pytest.importorskip("material", reason="needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {}
    for path in folder.rglob("*.html"):
        pages[path] = Links()
        pages[path].feed(path.read_text(encoding="utf-8"))
    return pages


@pytest.mark.slow
def test_the_site_stands_alone_and_its_links_lead_somewhere(site):
    assert len(site) > 30
    for page, links in site.items():
        if page.name == "404.html":
            continue
        for link in (*links.loaded, *links.leads):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                # Others' pages may be led to, and nothing of theirs is loaded.
                assert link in links.leads and link not in links.loaded, (page.name, link)
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            assert target.exists(), (page.name, link)
            if parts.fragment and target in site:
                assert unquote(parts.fragment) in site[target].anchors, (page.name, link)
        assert not links.bare, page
    for style in next(iter(site)).parent.rglob("*.css"):
        assert not re.search(r"url\(['\"]?https?:|@import", style.read_text(encoding="utf-8")), style


@pytest.mark.slow
def test_the_site_has_the_models_and_the_interface(site):
    names = {
        page.relative_to(next(iter(site)).parents[0]).as_posix()
        for page in site
        if page.parent.name != "models"
    }
    assert {"index.html", "api.html", "own-network.html", "changelog.html"} <= {
        Path(name).name for name in names
    }
    by_name = {page.name: (page, links) for page, links in site.items()}
    assert {"unrain.derain", "unrain.Derainer.derain", "unrain.derainer.Derained"} <= by_name["api.html"][
        1
    ].anchors
    for model in zoo.built_in():
        text = by_name[f"{model.name}.html"][0].read_text(encoding="utf-8")
        assert model.card["summary"] in text
