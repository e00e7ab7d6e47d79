"""The README's table of results stands in the cards, and nowhere else."""

from pathlib import Path

import pytest
from PIL import Image

from toys import ROOT
from unrain import cli, zoo
from unrain.errors import UnrainError
from unrain.lab.bench.report.readme import BEGIN, END, scores_table, with_scores, write_scores
from unrain.zoo import Model

README = ROOT / "README.md"
SCORE = {"pictures": 100, "psnr": 30.126, "ssim": 0.91234}
SCORES = {"b T2": SCORE, "b T1": SCORE, "rain100l/test T1": SCORE}
CARD = {"scores": SCORES, "scores_by": "unrain bench one", "scores_commit": "abc"}
MODEL = Model("one", Path("one.onnx"), CARD)


def test_the_readme_is_as_bench_writes_it():
    text = README.read_text(encoding="utf-8")
    assert with_scores(text, zoo.models()) == text
    for model in zoo.models():
        assert f"| `{model.name}` | 1 |" in text


def test_rows_are_sorted_and_rounded():
    assert scores_table([MODEL]).splitlines()[2:] == [
        "| `one` | 1 | rain100l/test | 100 | 30.13 | 0.9123 | light rain |",
        "| `one` | 1 | b | 100 | 30.13 | 0.9123 |  |",
        "| `one` | 2 | b | 100 | 30.13 | 0.9123 |  |",
        "",
        "Measured by `unrain bench one` at commit abc.",
    ]


def test_only_what_is_between_the_marks_changes(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_scores(readme, [MODEL])
    assert readme.read_text() == f"before\n{BEGIN}\n{scores_table([MODEL])}{END}\nafter\n"
    assert list(tmp_path.iterdir()) == [readme]


@pytest.mark.parametrize("text", ["nothing", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_readme_without_a_place_for_scores_is_refused_and_kept(tmp_path, text):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(UnrainError, match="no place for the scores"):
        write_scores(readme, [MODEL])
    assert readme.read_text() == text


def test_a_missing_readme_is_an_error_that_names_it(tmp_path):
    with pytest.raises(UnrainError, match=r"none\.md: no such file"):
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
    assert readme.read_text() == f"{BEGIN}\n{scores_table(zoo.models())}{END}\n"
