"""Build unrain as one file for people without Python: `python deploy/application.py --output dist/unrain`.

In an environment of its own, so that nothing else gets in. Videos and the page are in it, the lab is not.
PyInstaller (GPL 2 with an exception that lets what it packs have any licence) is needed to build only.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYINSTALLER = "pyinstaller>=6.16,<7"
# Parts of libraries that nothing here calls.
LEFT_OUT = (
    "tkinter",
    "onnxruntime.quantization",
    "onnxruntime.tools",
    "onnxruntime.transformers",
    "sympy",
    "pip",
)


def main() -> None:
    """Build the file and try it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="the file to write")
    parser.add_argument("--source", default=str(ROOT), help="what is installed, a wheel for instance")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="unrain-application-") as name:
        folder = Path(name)
        venv.create(folder / "venv", with_pip=True)
        scripts = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
        run(scripts / "python", "-m", "pip", "install", "-q", f"{options.source}[web,video]", PYINSTALLER)
        # The lab is left out, and with it the weights that it starts from.
        where = said(scripts / "python", "-c", "import unrain; print(unrain.__path__[0])", cwd=folder)
        shutil.rmtree(Path(where) / "lab")
        program = options.output.name.removesuffix(".exe")
        run(
            *(scripts / "pyinstaller", "--onefile", "--console", "--noconfirm", "--log-level=ERROR"),
            *("--name", program, "--distpath", folder / "dist", "--workpath", folder / "work"),
            *("--specpath", folder, "--collect-data", "unrain", "--copy-metadata", "unrain"),
            # The versions that `unrain --version` names.
            *(
                word
                for library in ("numpy", "pillow", "onnxruntime", "av")
                for word in ("--copy-metadata", library)
            ),
            # Commands are imported by name.
            *("--collect-submodules", "unrain.cli", "--collect-submodules", "unrain.web"),
            *("--collect-submodules", "unrain.video", "--collect-submodules", "uvicorn"),
            *(word for library in LEFT_OUT for word in ("--exclude-module", library)),
            ROOT / "deploy" / "application_start.py",
        )
        (made,) = (folder / "dist").iterdir()
        run(made, "--version")
        run(made, ROOT / "examples" / "launch.jpg", "-o", folder / "derained.jpg")
        options.output.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made, options.output)
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.0f} MB")  # noqa: T201


def run(*command: object) -> None:
    """Run a program and stop if it fails."""
    subprocess.run([str(word) for word in command], check=True)


def said(*command: object, cwd: Path) -> str:
    """Run a program and return what it prints."""
    done = subprocess.run([str(word) for word in command], cwd=cwd, check=True, stdout=subprocess.PIPE)
    return done.stdout.decode().strip()


if __name__ == "__main__":
    main()
