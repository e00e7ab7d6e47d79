"""The tables of scores say what the cards say, and nothing else writes them."""

import re
from pathlib import Path

import pytest
from PIL import Image

from toys import ROOT
from unrain import cli, zoo
from unrain.errors import UnrainError
from unrain.lab.bench.report import readme
from unrain.lab.bench.report.readme import (
    BEGIN,
    BEGIN_ALL,
    END,
    full_table,
    summary_table,
    with_table,
    write_scores,
)
from unrain.version import __version__
from unrain.zoo import Model

README = ROOT / "README.md"
BENCHMARK = ROOT / "docs" / "benchmark.md"
SCORE = {"pictures": 100, "psnr": 30.126, "ssim": 0.91234}
SCORES = {"b T2": SCORE, "b T1": SCORE, "rain100l/test T1": SCORE}
CARD = {"scores": SCORES, "scores_by": "unrain bench one", "scores_commit": "abc"}
MODEL = Model("one", Path("one.onnx"), CARD)


def test_readme_and_benchmark_are_as_bench_writes_them():
    for page, begin, table in ((README, BEGIN, summary_table), (BENCHMARK, BEGIN_ALL, full_table)):
        text = page.read_text(encoding="utf-8")
        assert with_table(text, begin, table(zoo.models())) == text


def test_every_model_is_in_the_full_table():
    rows = full_table(zoo.models())
    for model in zoo.models():
        assert f"| `{model.name}` | 1 |" in rows


def test_the_summary_has_the_default_the_smallest_and_the_baselines():
    rows = summary_table(zoo.models()).splitlines()[2:]
    assert [row.split(" |")[0].removeprefix("| ") for row in rows] == [
        "`rdmc-lite`, the default",
        "`rdmc-lite-xs`, the smallest",
        "PReNet, trained on Rain100L",
        "PReNet, trained on Rain100H",
        "the rainy input",
    ]


def test_the_summary_shows_the_usual_number_of_recursions():
    score = {"pictures": 100, "psnr": 1.0, "ssim": 0.1}
    scores = {"rain100l/test T1": score, "rain100l/test T2": SCORE}
    model = Model("one", Path("one.onnx"), {"parameters": 1, "recursions": 2, "scores": scores})
    rows = summary_table([model]).splitlines()
    assert rows[2] == "| `one`, the smallest | 30.13 / 0.9123 | - | - | - | - | - |"


def test_rows_are_sorted_and_rounded():
    assert full_table([MODEL]).splitlines()[:4] == [
        "| model | recursions | Rain100L | Rain100H | Rain800 | Kodak24, no rain | b |",
        "|---|---|---|---|---|---|---|",
        "| `one` | 1 | 30.13 / 0.9123 | - | - | - | 30.13 / 0.9123 |",
        "| `one` | 2 | - | - | - | - | 30.13 / 0.9123 |",
    ]
    assert "\nMeasured by `unrain bench one` at commit abc.\n" in full_table([MODEL])


@pytest.mark.parametrize(("change", "shown"), [(0.01, True), (0.1, False)])
def test_real_rain_is_shown_only_for_the_weights_that_were_measured(monkeypatch, change, shown):
    measured = {
        "rain100l": SCORE["psnr"] + change,
        "niqe": 3.5,
        "brisque": 21.3,
        "streaks": 0.418,
        "away": 0.9,
    }
    reference = {"scores": {}, "seconds": {}, "real_rain": {"one": measured}}
    monkeypatch.setattr(readme, "reference", lambda: reference)
    assert ("| `one` | 3.500 | 21.30 | 0.418 | 0.90 |" in full_table([MODEL])) is shown
    assert ("| 41.8 % |" in summary_table([MODEL])) is shown


def test_only_what_is_between_the_marks_changes(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_scores(readme, [MODEL])
    assert readme.read_text() == f"before\n{BEGIN}\n{summary_table([MODEL])}{END}\nafter\n"
    assert list(tmp_path.iterdir()) == [readme]


def test_the_benchmark_page_beside_the_readme_gets_all_scores(tmp_path):
    readme, page = tmp_path / "README.md", tmp_path / "docs" / "benchmark.md"
    page.parent.mkdir()
    readme.write_text(f"{BEGIN}\n{END}\n")
    page.write_text(f"{BEGIN_ALL}\n{END}\nafter\n")
    write_scores(readme, [MODEL])
    assert page.read_text() == f"{BEGIN_ALL}\n{full_table([MODEL])}{END}\nafter\n"


@pytest.mark.parametrize("text", ["nothing", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_readme_without_a_place_for_scores_is_refused_and_kept(tmp_path, text):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(UnrainError, match="no place for the scores"):
        write_scores(readme, [MODEL])
    assert readme.read_text() == text


def test_nothing_is_written_when_one_page_has_no_place(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n{END}\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "benchmark.md").write_text("nothing")
    with pytest.raises(UnrainError, match=r"benchmark\.md: has no place for the scores"):
        write_scores(readme, [MODEL])
    assert readme.read_text() == f"{BEGIN}\n{END}\n"


def test_a_missing_readme_is_an_error_that_names_it(tmp_path):
    with pytest.raises(UnrainError, match=r"none\.md: cannot be read"):
        write_scores(tmp_path / "none.md", [MODEL])


def test_bench_writes_the_readme_when_it_has_measured(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    for side in ("rain", "clean"):
        (tmp_path / "data" / "set" / side).mkdir(parents=True)
        Image.effect_noise((24, 24), 40).convert("RGB").save(tmp_path / "data" / "set" / side / "1.png")
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n{END}\n")
    assert cli.main(["bench", "--data", "data", "--suite", "set", "--readme", str(readme)]) == 0
    assert readme.read_text() == f"{BEGIN}\n{summary_table(zoo.models())}{END}\n"


def test_changelog_and_citation_name_the_version_and_its_day():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version, day = re.search(r"^## (\d\S*) - (\d{4}-\d\d-\d\d)$", changelog, re.MULTILINE).groups()
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    assert version == __version__
    assert f"version: {version}" in citation and f"date-released: {day}" in citation
