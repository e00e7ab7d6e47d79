"""Plans: where results go, and what is refused because a file would be lost."""

import os
from pathlib import Path

import pytest

from toys import flat_picture
from unrain.plan import Job, PlanError, make_plan


def targets(plan):
    return {str(job.source): str(job.targets["derained"]) for job in plan.jobs}


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (None, "in/a_derained.png"),
        ("out", "out/a_derained.png"),
        ("out/", "out/a_derained.png"),
        ("new.jpg", "new.jpg"),
        ("out/new.JPG", "out/new.JPG"),
        ("dotted.dir/", "dotted.dir/a_derained.png"),
        (".", "a_derained.png"),
    ],
)
def test_where_one_result_goes(cwd, output, expected):
    flat_picture(cwd / "in" / "a.png")
    assert targets(make_plan(["in/a.png"], output)) == {"in/a.png": expected}


def test_an_existing_folder_may_have_a_dot(cwd):
    flat_picture(cwd / "a.png")
    (cwd / "v1.0").mkdir()
    assert targets(make_plan(["a.png"], "v1.0")) == {"a.png": "v1.0/a_derained.png"}


def test_an_unknown_extension_is_refused(cwd):
    flat_picture(cwd / "a.png")
    with pytest.raises(PlanError, match=r"new\.gif: extension \.gif: use one of \.avif"):
        make_plan(["a.png"], "new.gif")


def test_folders_keep_their_structure(cwd):
    for name in ("in/a.JPG", "in/deep/er/b.tiff", "in/.hidden/c.png", "in/._a.jpg", "in/text.txt"):
        flat_picture(cwd / name) if not name.endswith("txt") else (cwd / name).write_text("no")
    assert targets(make_plan(["in"], "out")) == {
        "in/a.JPG": "out/a_derained.JPG",
        "in/deep/er/b.tiff": "out/deep/er/b_derained.tiff",
    }
    assert targets(make_plan(["in"]))["in/deep/er/b.tiff"] == "in/deep/er/b_derained.tiff"


def test_earlier_results_and_the_output_folder_are_left_out(cwd):
    for name in ("a.png", "a_derained.png", "a_rain.png", "a_compare.png", "out/z.png", "rain.png"):
        flat_picture(cwd / name)
    assert list(targets(make_plan(["."], "out"))) == ["a.png", "rain.png"]
    assert "out/z.png" in targets(make_plan(["."]))


def test_a_pattern_that_caught_results_too(cwd):
    for name in ("a.png", "a_derained.png", "b_derained.png"):
        flat_picture(cwd / name)
    plan = make_plan(["*.png"])
    # b_derained.png has no b.png beside it: somebody means that very file.
    assert list(targets(plan)) == ["a.png", "b_derained.png"]
    assert [(o.name, o.status, o.message) for o in plan.settled] == [
        ("a_derained.png", "skipped", "a result of a.png")
    ]


def test_extra_results_are_named_after_the_picture(cwd):
    flat_picture(cwd / "a.jpg")
    (job,) = make_plan(["a.jpg"], rain_layer=True, compare=True).jobs
    assert {kind: str(path) for kind, path in job.targets.items()} == {
        "derained": "a_derained.jpg",
        "rain": "a_rain.png",
        "compare": "a_compare.jpg",
    }
    (job,) = make_plan(["a.jpg"], "clear.webp", rain_layer=True, compare=True).jobs
    assert str(job.targets["rain"]), str(job.targets["compare"]) == ("clear_rain.png", "clear_compare.webp")


def test_inputs_named_twice_are_run_once(cwd):
    flat_picture(cwd / "in" / "a.png")
    assert len(make_plan(["in", "in/a.png", "./in/../in/a.png"]).jobs) == 1


def test_two_results_in_one_file_are_refused(cwd):
    flat_picture(cwd / "one" / "a.png")
    flat_picture(cwd / "two" / "a.png")
    with pytest.raises(PlanError, match=r"out/a_derained\.png: the result of both one/a\.png and two/a\.png"):
        make_plan(["one", "two"], "out")
    flat_picture(cwd / "one" / "a.jpg")
    with pytest.raises(PlanError, match="the result of both"):
        make_plan(["one/a.jpg", "one/a.png"], "out", rain_layer=True)


@pytest.mark.parametrize("how", ["itself", "symlink", "hard link", "detour"])
def test_an_input_is_never_a_target(cwd, how):
    flat_picture(cwd / "a.png")
    output = "a.png"
    if how == "symlink":
        (cwd / "b.png").symlink_to("a.png")
        output = "b.png"
    elif how == "hard link":
        os.link("a.png", "b.png")
        output = "b.png"
    elif how == "detour":
        output = f"../{cwd.name}/./a.png"
    with pytest.raises(PlanError, match=r"is the input a\.png"):
        make_plan(["a.png"], output)


def test_nor_is_another_input(cwd):
    flat_picture(cwd / "in" / "a.png")
    flat_picture(cwd / "out" / "a_derained.png", value=9)
    with pytest.raises(PlanError, match=r"out/a_derained\.png: is the input out/a_derained\.png"):
        make_plan(["in/a.png", "out/a_derained.png"], "out")


def test_streams(cwd):
    flat_picture(cwd / "a.png")
    assert make_plan(["-"]).jobs == [Job(None, {})]
    assert make_plan(["-"], "-").jobs[0].to_stdout
    assert not make_plan(["-"], "x.png").jobs[0].to_stdout
    assert make_plan(["a.png"], "-").jobs[0].to_stdout
    for inputs, output, options, message in (
        (["-", "a.png"], None, {}, "cannot be mixed"),
        (["-"], "folder", {}, "a folder, but standard input has no name"),
        (["-"], None, {"compare": True}, "need a file name after -o"),
        (["a.png", "b.png"], "-", {}, "takes one picture"),
        ([], None, {}, "no input"),
    ):
        with pytest.raises(PlanError, match=message):
            make_plan(inputs, output, **options)


def test_several_inputs_need_a_folder(cwd):
    flat_picture(cwd / "a.png")
    (cwd / "file").write_text("x")
    for inputs in (["a.png", "b.png"], ["."]):
        with pytest.raises(PlanError, match="file: a file, but there are several inputs"):
            make_plan(inputs, "file")


@pytest.mark.parametrize("output", ["one.jpg", "deep/one.TIF", "one.mp4"])
def test_several_results_in_one_file_are_refused(cwd, output):
    flat_picture(cwd / "in" / "a.png")
    flat_picture(cwd / "in" / "b.png")
    for inputs in (["in/a.png", "in/b.png"], ["in"]):
        with pytest.raises(PlanError, match=f"{output}: a file name, but there may be several results"):
            make_plan(inputs, output)
        assert make_plan(inputs, f"{output}/").jobs
    (cwd / output).mkdir(parents=True)
    assert make_plan(["in"], output).folder == Path(output)


def test_files_of_other_kinds_are_named(cwd):
    flat_picture(cwd / "in" / "a.png")
    for name in ("b.PSD", "c.exr", "deep/d.jp2", "e.tga", ".f.psd", "g_derained.psd", "notes.txt", "h.y4m"):
        (cwd / "in" / name).parent.mkdir(exist_ok=True)
        (cwd / "in" / name).write_bytes(b"x")
    plan = make_plan(["in"], "out")
    assert [str(job.source) for job in plan.jobs] == ["in/a.png"]
    assert sorted(map(str, plan.ignored)) == [
        "in/b.PSD",
        "in/c.exr",
        "in/deep/d.jp2",
        "in/e.tga",
        "in/h.y4m",
    ]
    (cwd / "in" / "a.png").unlink()
    (outcome,) = make_plan(["in"], "out").settled
    assert "; 5 files left aside (" in outcome.message
    assert outcome.message.endswith("): convert them to PNG, TIFF or MP4 first")
