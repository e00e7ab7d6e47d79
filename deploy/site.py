"""Hooks of the site (mkdocs.yml): pages from the rest of the repository, and links between all of them.

The same Markdown files are read in the repository, where links lead to files, and on the site, where
they lead to pages. A link to a file that is no page becomes its text: the site stands alone.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from unrain import zoo
from unrain.cli.model_card import as_markdown

ROOT = Path(__file__).resolve().parents[1]
ICON = "src/unrain/web/static/icon.svg"
# Pages of the site that lie elsewhere in the repository.
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CODE_OF_CONDUCT.md": "conduct.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "examples/README.md": "examples.md",
    "examples/notebooks/README.md": "notebooks.md",
    "examples/own_network/README.md": "own-network.md",
    "integrations/README.md": "integrations.md",
    "integrations/chainner/README.md": "integrations-chainner.md",
    "integrations/comfyui/README.md": "integrations-comfyui.md",
    "integrations/huggingface-space/README.md": "integrations-space.md",
    "integrations/pipes/README.md": "integrations-pipes.md",
    "recipes/README.md": "recipes.md",
    "tests/attack/README.md": "attack.md",
}
# What a search finds there comes last: they name everything, and explain little of it.
LAST = {"attack.md", "changelog.md", "recipes.md", "training-log.md"}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Leave out of the navigation what is not there (yet)."""
    there = {path.name for path in (ROOT / "docs").glob("*.md")} | {*PAGES.values(), "models.md"}

    def kept(entries: list[Any]) -> list[Any]:
        found = []
        for entry in entries:
            if isinstance(entry, dict):
                ((title, inner),) = entry.items()
                if isinstance(inner, list):
                    found.append({title: kept(inner)})
                elif inner in there:
                    found.append(entry)
            elif entry in there:
                found.append(entry)
        return found

    config.nav = kept(config.nav or [])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere, a page for each model, and the icon."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        # A Space's configuration is no part of its page.
        text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
        files.append(File.generated(config, page, content=text))
    names = []
    for model in zoo.built_in():
        lines = "\n".join(as_markdown(model)).split("---\n", 2)[2]
        files.append(File.generated(config, f"models/{model.name}.md", content=lines))
        names.append(f"| [{model.name}](models/{model.name}.md) | {model.card['summary']} |")
    listed = "\n".join(names)
    head = "# Models\n\nThe models that come with unrain, by their cards.\n\n| model | for |\n|---|---|\n"
    text = f"{head}{listed}\n"
    files.append(File.generated(config, "models.md", content=text))
    files.append(File.generated(config, "icon.svg", content=(ROOT / ICON).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files into links between pages."""
    place = page.file.src_uri
    if place in LAST:
        page.meta["search"] = {"boost": 0.1}
    source = next((path for path, name in PAGES.items() if name == place), f"docs/{place}")
    if place.startswith("models"):
        return markdown
    kept: list[str] = []

    def hide(match: re.Match[str]) -> str:
        kept.append(match[0])
        return f"\0{len(kept) - 1}\0"

    def turn(match: re.Match[str]) -> str:
        mark, text, link = match.groups()
        path, _, anchor = link.partition("#")
        if "://" in link or not path:
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        name = PAGES.get(target)
        if target == "README.md":
            name = "index.md"
            anchor = ""
        elif target.startswith("docs/"):
            name = target.removeprefix("docs/")
        if name is None or files.get_file_from_path(name) is None:
            return text
        return f"{mark}[{text}]({name}{'#' + anchor if anchor else ''})"

    shown = _LINK.sub(turn, _CODE.sub(hide, markdown))
    return re.sub("\0(\\d+)\0", lambda match: kept[int(match[1])], shown)
