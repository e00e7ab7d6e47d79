"""Every link between the project's pages leads somewhere, and every test that they name is there."""

import re

import pytest

from toys import ROOT

PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "recipes").glob("*.md"),
    *(ROOT / "examples").rglob("README.md"),
    *(ROOT / "integrations").rglob("README.md"),
]


def headings(page):
    """Return the anchors of a page, as GitHub makes them from headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in headings(target), link


def test_every_test_that_security_md_names_is_there():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = [
        line.split("|") for line in text.partition("## Defences")[2].splitlines() if line.startswith("| ")
    ]
    for _, defence, where, shown, _ in rows[1:]:
        places = re.findall(r"`([^`]+)`", where)
        tests = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", shown)
        assert places and tests, defence
        for place in places:
            assert (ROOT / "src" / "unrain" / place).exists(), place
        for file, name in tests:
            assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), name
