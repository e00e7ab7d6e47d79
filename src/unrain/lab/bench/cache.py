"""Stored scores: one file for each candidate, suite, number of recursions and set of measures.

The file gets a line for each picture as soon as it is measured, so that a killed run resumes and a second one
only reads. Its name is a hash of all that a score depends on: the model's file, the suite's files, the
recursions, the measures with their files, the code (`fingerprint`) and the libraries. A score is stale when
that name is another.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from unrain import files, zoo
from unrain.errors import UnrainError
from unrain.files import reading_problem, writing_error
from unrain.lab.bench.candidates import Candidate
from unrain.lab.nets.layers import RecursiveNet

FOLDER = Path("runs/bench")

_LIBRARIES = ("numpy", "scipy", "scikit-image", "pillow", "onnxruntime", "torch")


@dataclass
class Results:
    """The lines of one measurement.

    Attributes:
        path: Their file; None keeps nothing.
        about: What was measured, the file's first line.
        rows: What is known, by the pictures' names.
        reused: How many of these were there already.
    """

    path: Path | None
    about: dict[str, Any]
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    reused: int = 0

    def add(self, name: str, row: dict[str, Any]) -> None:
        """Keep a picture's line, on disk at once.

        Raises:
            UnrainError: The file cannot be written.
        """
        self.rows[name] = row
        if self.path is None:
            return
        fresh = not self.path.exists()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                if fresh:
                    file.write(json.dumps(self.about) + "\n")
                file.write(json.dumps({"name": name, **row}) + "\n")
        except OSError as error:
            raise writing_error(error, self.path) from error


def open_results(folder: Path | None, about: dict[str, Any], *, fresh: bool = False) -> Results:
    """Read what is there of a measurement.

    Args:
        folder: Where results are kept; None keeps nothing.
        about: Everything that the values depend on.
        fresh: Whether to forget what is there.

    Raises:
        UnrainError: The file is damaged.
    """
    if folder is None:
        return Results(None, about)
    text = json.dumps(about, sort_keys=True)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.jsonl"
    results = Results(path, about)
    lines = [] if fresh or not path.exists() else _whole_lines(path)
    if lines[:1] != [json.dumps(about)]:
        # Nothing is kept, or the run was killed before the first line was whole.
        path.unlink(missing_ok=True)
        return results
    for number, line in enumerate(lines[1:], 2):
        try:
            row = json.loads(line)
            results.rows[row.pop("name")] = row
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise _damaged(path, f"line {number}") from error
    results.reused = len(results.rows)
    return results


def _whole_lines(path: Path) -> list[str]:
    """Return the lines of a file, and cut off the one that a killed run left unfinished."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _damaged(path, "its text") from error
    except OSError as error:
        raise UnrainError(f"{path}: {reading_problem(error)}") from error
    whole, end, broken = text.rpartition("\n")
    if broken:
        files.write((whole + end).encode(), path)
    return whole.split("\n")


def _damaged(path: Path, what: str) -> UnrainError:
    return UnrainError(f"{path}: {what} is damaged, delete the file to measure its pictures again")


def identity(candidate: Candidate) -> str:
    """Return a hash of what a candidate is: a model's file, a network's weights, or a folder's files."""
    source = candidate.source
    total = hashlib.sha256()
    if source is None:
        return "input"
    if isinstance(source, zoo.Model):
        keys = ("multiple", "halo", "recursions", "recursive", "levels")
        contract = {name: source.card.get(name) for name in keys}
        total.update(source.path.read_bytes() + json.dumps(contract, sort_keys=True).encode())
    elif isinstance(source, RecursiveNet):
        total.update(f"{source} levels={source.levels}".encode())
        for path in _foreign_code(source):
            total.update(path.read_bytes())
        for name, value in source.state_dict().items():
            total.update(name.encode() + value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    else:
        for path in sorted(file for file in source.rglob("*") if file.is_file()):
            about = path.stat()
            total.update(f"{path} {about.st_size} {about.st_mtime_ns}\n".encode())
    return total.hexdigest()


def _foreign_code(net: RecursiveNet) -> list[Path]:
    """Return the files that define a network of another package: `fingerprint` sees unrain's own only."""
    modules = {type(part).__module__ for part in net.modules()}
    foreign = [name for name in modules if name.partition(".")[0] not in ("torch", "unrain")]
    files = (getattr(sys.modules.get(name), "__file__", None) for name in foreign)
    return sorted(Path(file) for file in files if file)


@lru_cache
def fingerprint(module: str = "unrain.lab.bench.run") -> str:
    """Return a hash of the code and the versions of the libraries that values depend on.

    Args:
        module: What computes the values; all that it imports of unrain, and every network, counts too.

    Raises:
        RuntimeError: There is no such module.
    """
    root = Path(__file__).parents[2]
    total = hashlib.sha256()
    for path in sources({module, "unrain.lab.nets.*"}):
        total.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    for library in _LIBRARIES:
        total.update(f"{library} {metadata.version(library)}\n".encode())
    return total.hexdigest()


def sources(modules: set[str]) -> list[Path]:
    """Return the files of modules of unrain and of all modules of unrain that these import, sorted.

    Args:
        modules: Names; `*` stands for all modules of a package.

    Raises:
        RuntimeError: A name matches no file: it has moved, and scores would be reused although code changed.
    """
    root = Path(__file__).parents[3]
    found: set[Path] = set()
    for name in modules:
        path = name.replace(".", "/")
        matches = [*root.glob(f"{path}.py"), *root.glob(f"{path}/__init__.py")]
        if not matches:
            raise RuntimeError(f"{name}: no such module, though stored scores depend on it")
        found.update(matches)
    waiting = list(found)
    while waiting:
        new = _imports(waiting.pop(), root) - found
        found |= new
        waiting += new
    return sorted(found)


def _imports(path: Path, root: Path) -> set[Path]:
    """Return the files of unrain that a file's import statements name, wherever they stand."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    files = (
        root / f"{name.replace('.', '/')}{ending}"
        for name in names
        if name.split(".")[0] == "unrain"
        for ending in (".py", "/__init__.py")
    )
    return {file for file in files if file.is_file()}
