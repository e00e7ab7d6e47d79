"""A campaign: lanes side by side, recipes in turn, and what is left when time is over."""

import pytest

from toys_training import TOY

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_lightning")

from unrain.errors import UnrainError  # noqa: E402
from unrain.lab.training import campaign  # noqa: E402

LONG = """
[[stages]]
steps = 900
patch = 16
batch = 64
warmup = 300
[[stages]]
steps = 100
patch = 16
batch = 2
"""


@pytest.fixture
def plan(toy, monkeypatch):
    """A plan of two lanes; the first one's second recipe starts from its first one's weights."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (toy / "first.toml").write_text(TOY.format(more=""))
    (toy / "second.toml").write_text(
        "base = 'first.toml'\ninitial = { weights = 'runs/first/weights.safetensors' }\n"
    )
    (toy / "other.toml").write_text("base = 'first.toml'\nvalidation = ['nowhere']\n")
    (toy / "plan.toml").write_text(
        "[[lanes]]\nrecipes = ['first.toml', 'second.toml']\n[[lanes]]\nrecipes = ['other.toml']\n"
    )
    return toy / "plan.toml"


def test_lanes_are_trained_and_a_failed_one_is_named_and_repeated(plan, capfd):
    toy = plan.parent
    assert campaign.campaign(plan, data=toy / "data", out=toy / "runs", minutes=5) == 1
    printed = capfd.readouterr()
    assert printed.out == "first: trained\nsecond: trained\nother: failed\n"
    assert "unrain: other.toml: " in printed.err and "nowhere" in printed.err and "other.log" in printed.err
    trained = (toy / "runs/second/weights.safetensors").stat().st_mtime_ns
    (toy / "other.toml").write_text("base = 'first.toml'\nseed = 3\n")
    assert campaign.campaign(plan, data=toy / "data", out=toy / "runs", minutes=5) == 0
    assert capfd.readouterr().out == "first: trained\nsecond: trained\nother: trained\n"
    assert (toy / "runs/second/weights.safetensors").stat().st_mtime_ns == trained


def test_what_runs_when_time_is_over_is_stopped_and_named(plan, capfd):
    toy = plan.parent
    plan.write_text("[[lanes]]\nrecipes = ['first.toml']\n")
    assert campaign.campaign(plan, data=toy / "data", out=toy / "runs", minutes=0.001) == 1
    printed = capfd.readouterr()
    assert printed.out == "first: not finished\n"
    assert printed.err == "unrain: 1 left: the same command goes on\n"
    assert not (toy / "runs/first/weights.safetensors").exists()


def test_a_rehearsal_runs_a_few_steps_of_everything_in_a_folder_of_its_own(plan, capfd):
    toy = plan.parent
    (toy / "long.toml").write_text("base = 'first.toml'\nvalidation = ['nowhere']\n" + LONG)
    plan.write_text("[[lanes]]\nrecipes = ['long.toml', 'second.toml']\n")
    text = (toy / "second.toml").read_text()
    (toy / "second.toml").write_text(text.replace("runs/first/", "elsewhere/long/"))
    assert campaign.campaign(plan, data=toy / "data", out=toy / "runs", minutes=5, rehearsal=2) == 0
    assert capfd.readouterr().out == "long: trained\nsecond: trained\n"
    assert [path.name for path in (toy / "runs").iterdir()] == ["rehearsal"]
    checkpoint = torch.load(toy / "runs/rehearsal/long/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the key 'lanes' is missing"),
        ("lanes = []", r"needs at least one \[\[lanes\]\]"),
        ("[[lanes]]\nrecipes = ['none.toml']", r"none\.toml"),
    ],
)
def test_a_plan_that_cannot_be_read_starts_nothing(plan, text, words):
    plan.write_text(text)
    with pytest.raises(UnrainError, match=words):
        campaign.campaign(plan, data=plan.parent, out=plan.parent / "runs")
    assert not (plan.parent / "runs").exists()
