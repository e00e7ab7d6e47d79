"""Who imports whom: no circle, no arrow from a lower floor to a higher one, no lab on the ground floor."""

import ast
import graphlib
from pathlib import Path

import pytest

from toys import ROOT

LAB = "unrain.lab"
# From the lowest to the highest; a room is on the floor of the longest name that it begins with.
FLOORS = (
    ("unrain.errors", "unrain.version"),
    ("unrain.devices", "unrain.files"),
    ("unrain.image", "unrain.octaves", "unrain.onnx_file", "unrain.zoo"),
    ("unrain.engine", "unrain.layer"),
    ("unrain.derainer", "unrain.score"),
    ("unrain",),
    ("unrain.video",),
    ("unrain.plan", "unrain.live"),
    ("unrain.batch", "unrain.watch"),
    ("unrain.cluster.options",),
    ("unrain.cli",),
    ("unrain.cluster",),
    ("unrain.web",),
    ("unrain.__main__",),
    (LAB, "unrain.lab.hardware", "unrain.lab.weights_file"),
    ("unrain.lab.nets",),
    ("unrain.lab.checkpoint", "unrain.lab.torch_engine", "unrain.lab.torch_graph"),
    ("unrain.lab.export",),
    # The schedule of a recipe, a few numbers that decide how batches are cut.
    ("unrain.lab.training.stage",),
    ("unrain.lab.data",),
    ("unrain.lab.metrics",),
    ("unrain.lab.training",),
    ("unrain.lab.search",),
    ("unrain.lab.bench",),
    (
        "unrain.lab.adapt",
        "unrain.lab.ablate",
        "unrain.lab.curves",
        "unrain.lab.darktable",
        "unrain.lab.score",
    ),
    ("unrain.lab.cli",),
)
# Packages whose name stands for their own `__init__` only: a new room in them is to be given a floor.
PARENTS = {"unrain", LAB}


def floor(module):
    """The number of a module's floor, or None if nobody gave it one."""
    names = {name: number for number, names in enumerate(FLOORS) for name in names}
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        name = ".".join(parts[:end])
        if name in names and (name == module or name not in PARENTS):
            return names[name]
    return None


def modules(source):
    """Every module below a folder by its name."""
    found = {}
    for path in sorted((source / "unrain").rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def statements(tree, *, everywhere):
    """The statements that run on import; with `everywhere` also those in functions and for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if not everywhere and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if not everywhere and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for other in node.orelse:
                yield other
                yield from statements(other, everywhere=everywhere)
            continue
        yield node
        yield from statements(node, everywhere=everywhere)


def imported(module, path, known, *, everywhere=False):
    """The modules among `known` that a module names in its imports."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in statements(ast.parse(path.read_bytes()), everywhere=everywhere):
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            for name in node.names:
                full = f"{base}.{name.name}"
                found.add(full if full in known else base)
    return {name for name in found if name in known} - {module}


def arrows(source):
    known = modules(source)
    return {module: imported(module, path, known) for module, path in known.items()}


def circle(graph):
    """A circle of imports, or an empty list. Importing a module also runs the packages that hold it."""

    def run(module, other):
        parts = other.split(".")
        around = {".".join(parts[:end]) for end in range(1, len(parts))}
        return {other, *(package for package in around if not f"{module}.".startswith(f"{package}."))}

    full = {
        module: {name for other in others for name in run(module, other)} for module, others in graph.items()
    }
    try:
        graphlib.TopologicalSorter(full).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def upward(graph):
    """The arrows from a lower floor to a higher one, and the modules without a floor."""
    homeless = [f"{module}: name its floor in FLOORS" for module in graph if floor(module) is None]
    return homeless or [
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in sorted(others)
        if floor(other) > floor(module)
    ]


def to_the_lab(source):
    """The arrows from the ground floor to the lab, those in functions and for type checkers included."""
    known = modules(source)
    return [
        f"{module} imports {other}"
        for module, path in known.items()
        if not f"{module}.".startswith(f"{LAB}.")
        for other in sorted(imported(module, path, known, everywhere=True))
        if f"{other}.".startswith(f"{LAB}.")
    ]


def test_no_circle():
    assert circle(arrows(ROOT / "src")) == []


def test_no_arrow_from_low_to_high():
    assert upward(arrows(ROOT / "src")) == []


def test_the_ground_floor_does_not_know_the_lab():
    assert to_the_lab(ROOT / "src") == []


@pytest.fixture
def house(tmp_path):
    """A function that builds a small package from the text of its modules."""

    def build(**rooms):
        for name, text in rooms.items():
            path = tmp_path / "unrain" / Path(*name.split("__")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return build


def test_a_circle_is_found(house):
    source = house(
        files="from unrain import zoo",
        zoo="class A:\n    from .engine import b",
        engine="import unrain.files",
    )
    assert set(circle(arrows(source))) == {"unrain.files", "unrain.zoo", "unrain.engine"}


def test_a_circle_through_a_package_is_found(house):
    (house(image__decode="") / "unrain" / "image" / "__init__.py").write_text("import unrain.derainer")
    source = house(derainer="from unrain.image.decode import read")
    assert set(circle(arrows(source))) == {"unrain.image", "unrain.derainer"}


def test_what_runs_later_is_no_circle(house):
    later = "if TYPE_CHECKING:\n    import unrain.zoo\ndef f(): import unrain.zoo"
    assert circle(arrows(house(files=later, zoo="import unrain.files"))) == []


def test_an_arrow_to_a_higher_floor_is_found(house):
    source = house(
        errors="", engine="from unrain.errors import A\ntry:\n    import unrain.plan\nexcept E: pass", plan=""
    )
    assert upward(arrows(source)) == ["unrain.engine imports unrain.plan"]


def test_a_module_without_a_floor_is_named(house):
    assert upward(arrows(house(attic="", errors=""))) == ["unrain.attic: name its floor in FLOORS"]


@pytest.mark.parametrize("text", ["def f():\n    from unrain.lab import nets", "import unrain.lab.nets"])
def test_a_way_to_the_lab_is_found(house, text):
    source = house(zoo=text, lab__nets="")
    assert to_the_lab(source) == ["unrain.zoo imports unrain.lab.nets"]


def test_the_lab_in_a_string_is_no_way_to_it(house):
    assert to_the_lab(house(cli="app.command('unrain.lab.nets:build')", lab__nets="")) == []


def test_the_ground_floor_calls_no_blas():
    """Threads of BLAS, once woken, spin for a while, on cores that the network needs."""
    products = {"dot", "vdot", "inner", "matmul", "tensordot", "linalg"}
    package = ROOT / "src" / "unrain"
    for path in sorted(package.rglob("*.py")):
        if package / "lab" in path.parents:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not isinstance(node, ast.MatMult), path
            assert not (isinstance(node, ast.Attribute) and node.attr in products), f"{path}: {node.attr}"
