"""Runs with a log: shares, resuming, object storage, manifests; all without a cluster."""

import csv
import hashlib
import json
import tempfile

import pytest
from PIL import Image

from toys import flat_picture
from unrain import cli
from unrain.cluster import inputs, storage, worker
from unrain.cluster.inputs import find_work
from unrain.cluster.log import Log
from unrain.errors import UnrainError
from unrain.plan import Outcome, PlanError


@pytest.fixture
def run(cwd, tiny_model, capsys):
    """A function that runs the command with the hand-made network: its exit code and what it says."""

    def ran(*arguments):
        code = cli.main([*map(str, arguments), "--device", "cpu", "--model", str(tiny_model)])
        return code, capsys.readouterr().err

    return ran


def rows(folder):
    """The final row of each result, by its name."""
    found = {}
    for part in sorted((folder / "unrain-log").glob("*.jsonl")):
        found |= {row["result"]: row for row in map(json.loads, part.read_text().splitlines())}
    return found


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pictures(folder, count=6):
    for number in range(count):
        flat_picture(folder / f"sub{number % 2}" / f"p{number}.png")
    (folder / "bad.png").write_text("no picture")


def results(folder):
    return {path.relative_to(folder): digest(path) for path in folder.rglob("*.png")}


def test_shares_together_are_the_run_on_one_machine(cwd, run):
    pictures(cwd / "in")
    assert run("in", "-o", "one")[0] == 1
    codes = [run("in", "-o", "out", "--shard", f"{index}/3")[0] for index in (1, 2, 3)]
    assert sorted(codes) == [0, 0, 1]
    assert results(cwd / "out") == results(cwd / "one")
    found = rows(cwd / "out")
    assert len(found) == 7
    for name, row in found.items():
        assert row["input_sha256"] == digest(cwd / row["input"])
        if name != "bad_derained.png":
            assert (row["status"], row["result_sha256"]) == ("derained", digest(cwd / "out" / name))
    assert found["bad_derained.png"]["status"] == "failed"
    assert found["bad_derained.png"]["message"].startswith("in/bad.png: no picture in JPEG")


def test_a_share_depends_on_names_alone(cwd):
    pictures(cwd / "in", 40)
    before = {task.key for task in find_work(["in"], "out", share=(2, 3)).tasks}
    for task in find_work(["in"], "out", share=(1, 3)).tasks[:5]:
        (cwd / task.source).unlink()
    assert {task.key for task in find_work(["in"], "out", share=(2, 3)).tasks} == before
    assert 5 < len(before) < 25


def test_a_second_run_does_nothing_and_still_fails_for_what_failed(cwd, run, monkeypatch):
    pictures(cwd / "in")
    run("in", "-o", "out", "--shard", "1/1")
    monkeypatch.setattr(worker.batch, "run_job", lambda *a, **k: pytest.fail("did something"))
    code, said = run("in", "-o", "out", "--shard", "1/1")
    assert code == 1
    assert "unrain: error: in/bad.png: no picture" in said
    assert "--retry-failed" in said
    assert said.endswith("unrain: 0 derained, 6 skipped, 1 failed\n")


def test_retry_failed_tries_what_failed(cwd, run):
    pictures(cwd / "in")
    run("in", "-o", "out", "--shard", "1/1")
    flat_picture(cwd / "in" / "bad.png")
    assert run("in", "-o", "out", "--shard", "1/1", "-q")[0] == 1
    code, said = run("in", "-o", "out", "--shard", "1/1", "--retry-failed")
    assert (code, said.splitlines()[-1]) == (0, "unrain: 1 derained, 6 skipped, 0 failed")
    assert rows(cwd / "out")["bad_derained.png"]["status"] == "derained"


def test_a_run_that_lost_its_log_finds_its_results(cwd, run):
    pictures(cwd / "in")
    run("in", "-o", "out", "--shard", "1/1")
    before = rows(cwd / "out")
    for part in (cwd / "out" / "unrain-log").iterdir():
        part.unlink()
    (cwd / "out" / "sub0" / "p0_derained.png").unlink()
    run("in", "-o", "out", "--shard", "1/1")
    after = rows(cwd / "out")
    assert after["sub0/p0_derained.png"]["status"] == "derained"
    assert after["sub1/p1_derained.png"]["status"] == "skipped"
    for key in ("input_sha256", "result_sha256", "bytes"):
        assert {name: row[key] for name, row in after.items()} == {n: row[key] for n, row in before.items()}


def test_a_result_that_is_gone_is_made_again(cwd, run):
    pictures(cwd / "in")
    run("in", "-o", "out", "--shard", "1/1")
    (cwd / "out" / "sub0" / "p2_derained.png").unlink()
    _, said = run("in", "-o", "out", "--shard", "1/1")
    assert said.endswith("unrain: 1 derained, 5 skipped, 1 failed\n")


def test_overwrite_does_everything_anew(cwd, run):
    pictures(cwd / "in")
    run("in", "-o", "out", "--shard", "1/1")
    (cwd / "out" / "sub0" / "p0_derained.png").write_bytes(b"mine")
    run("in", "-o", "out", "--shard", "1/1", "-q")
    assert (cwd / "out" / "sub0" / "p0_derained.png").read_bytes() == b"mine"
    run("in", "-o", "out", "--shard", "1/1", "--overwrite")
    assert Image.open(cwd / "out" / "sub0" / "p0_derained.png").size == (12, 8)


def test_from_bucket_to_bucket_as_from_folder_to_folder(cwd, run, bucket):
    pictures(bucket / "rainy" / "set")
    (bucket / "rainy" / "set" / ".hidden.png").write_bytes(b"")
    (bucket / "rainy" / "set" / "layers.psd").write_bytes(b"")
    code, said = run("s3://rainy/set", "-o", "s3://clear/all/", "--shard", "1/1", "--rain-layer", "-v")
    assert code == 1
    assert "unrain: error: s3://rainy/set/bad.png: no picture in JPEG" in said
    assert (
        "s3://rainy/set/sub0/p0.png -> s3://clear/all/sub0/p0_derained.png, s3://clear/all/sub0/p0_rain.png"
        in said
    )
    assert "unrain: 1 file left aside (.psd 1)" in said
    run(bucket / "rainy" / "set", "-o", "one", "--rain-layer")
    assert results(bucket / "clear" / "all") == results(cwd / "one")
    assert set(rows(bucket / "clear" / "all")) == {f"sub{n % 2}/p{n}_derained.png" for n in range(6)} | {
        "bad_derained.png"
    }
    assert run("s3://rainy/set", "-o", "s3://clear/all", "--shard", "1/1")[1].count("skipped, done by") == 6


def test_a_video_from_bucket_to_bucket(cwd, run, bucket):
    pytest.importorskip("av", reason="needs PyAV")
    from toys_video import clip

    (bucket / "rainy").mkdir()
    clip(bucket / "rainy" / "clip.mp4")
    (bucket / "rainy" / "bad.mp4").write_bytes(b"no video")
    code, said = run("s3://rainy", "-o", "s3://clear", "--shard", "1/1")
    assert code == 1
    assert "unrain: error: s3://rainy/bad.mp4: " in said
    assert run(bucket / "rainy" / "clip.mp4", "-o", "one/")[0] == 0
    row = rows(bucket / "clear")["clip_derained.mp4"]
    assert row["frames"] > 1
    assert row["result_sha256"] == digest(bucket / "clear" / "clip_derained.mp4")
    assert digest(bucket / "clear" / "clip_derained.mp4") == digest(cwd / "one" / "clip_derained.mp4")


def test_an_extra_result_beside_one_that_is_there(cwd, tiny_model, bucket, capfd):
    flat_picture(bucket / "rainy" / "a.png")
    command = ["s3://rainy/a.png", "-o", "s3://clear/x", "--shard", "1/1", "--model", str(tiny_model)]
    cli.main(command)
    (bucket / "clear" / "x" / "a_derained.png").write_bytes(b"mine")
    cli.main([*command, "--rain-layer"])
    assert (bucket / "clear" / "x" / "a_derained.png").read_bytes() == b"mine"
    assert Image.open(bucket / "clear" / "x" / "a_rain.png").size == (12, 8)
    # Where there is nothing to derain, nothing goes to standard output either.
    assert capfd.readouterr().out == ""


def test_what_appears_meanwhile_is_kept(cwd, run, bucket, monkeypatch):
    flat_picture(bucket / "rainy" / "a.png")
    real = worker.batch.run_job

    def slow(*arguments, **options):
        (bucket / "clear").mkdir(exist_ok=True)
        (bucket / "clear" / "a_derained.png").write_bytes(b"mine")
        return real(*arguments, **options)

    monkeypatch.setattr(worker.batch, "run_job", slow)
    code, said = run("s3://rainy/a.png", "-o", "s3://clear", "--shard", "1/1")
    assert code == 1
    assert "s3://clear/a_derained.png: appeared while this run was busy and is kept" in said
    assert (bucket / "clear" / "a_derained.png").read_bytes() == b"mine"


def test_names_do_not_lead_out_of_the_folder_of_results(cwd):
    names = ["s3://rainy/../../etc/p.png", "/abs//p.png", "a/./b.png", "../c.png"]
    (cwd / "all.csv").write_text("\n".join(["path", *names]))
    work = find_work(["all.csv"], "out")
    assert {task.targets["derained"] for task in work.tasks} == {
        "out/a/b_derained.png",
        "out/abs/p_derained.png",
    }
    assert [outcome.message for outcome in work.settled] == [
        "s3://rainy/../../etc/p.png: a name that leads elsewhere, rename it",
        "../c.png: a name that leads elsewhere, rename it",
    ]


def test_a_manifest_names_the_inputs(cwd, run, bucket):
    flat_picture(cwd / "lists" / "a" / "p.png")
    flat_picture(cwd / "else" / "q.png")
    flat_picture(bucket / "rainy" / "r.png")
    with (cwd / "lists" / "all.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerows(
            [["label", "path"], [1, "a/p.png"], [2, cwd / "else" / "q.png"], [3, "s3://rainy/r.png"]]
        )
    assert run("lists/all.csv", "-o", "out", "--shard", "1/1")[0] == 0
    inside = (cwd / "else" / "q.png").relative_to("/").with_name("q_derained.png")
    assert set(rows(cwd / "out")) == {"a/p_derained.png", inside.as_posix(), "rainy/r_derained.png"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("label,size\n1,2\n", "has no column of paths (it has label, size), call one path"),
        ("path\n", "lists no file, give it a row for each"),
        ("path\n\xff", "no CSV file in UTF-8"),
        ('path\n"a.png', "no CSV file in UTF-8"),
    ],
)
def test_a_wrong_manifest_is_one_line(cwd, run, text, problem):
    (cwd / "all.csv").write_bytes(text.encode("latin-1"))
    code, said = run("all.csv", "-o", "out", "--shard", "1/1")
    assert (code, said.count("\n")) == (1, 1)
    assert f"unrain: error: all.csv: {problem}" in said


def test_a_manifest_in_parquet(cwd, run):
    pa = pytest.importorskip("pyarrow", reason="needs pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    flat_picture(cwd / "p.png")
    pq.write_table(pa.table({"uri": ["p.png"], "n": [1]}), cwd / "all.parquet")
    assert run("all.parquet", "-o", "out", "--shard", "1/1")[0] == 0
    (cwd / "all.parquet").write_bytes(b"PAR1 nothing")
    code, said = run("all.parquet", "-o", "out", "--shard", "1/1")
    assert (code, said) == (1, "unrain: error: all.parquet: no Parquet file of paths, write it anew\n")


def test_the_parquet_log_has_the_final_rows(cwd, run):
    pq = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    pictures(cwd / "in")
    # A name that is no UTF-8.
    flat_picture(cwd / "in" / b"\xff.png".decode(errors="surrogateescape"))
    run("in", "-o", "out", "--shard", "1/2", "-q")
    run("in", "-o", "out", "--shard", "2/2", "-q")
    flat_picture(cwd / "in" / "bad.png")
    run("in", "-o", "out", "--shard", "1/1", "--retry-failed", "-q")
    table = pq.read_table(cwd / "out" / "unrain-log.parquet").to_pylist()
    assert len(table) == 8
    assert {row["status"] for row in table} == {"derained"}


def test_parts_of_a_log_become_one_and_the_last_row_counts(cwd, monkeypatch):
    from unrain.cluster import log as module

    monkeypatch.setattr(module, "_ROWS", 1)
    for status in ("failed", "derained"):
        log = Log("out")
        for name in ("a", "b"):
            log.add(module.LogRow(f"{name}.png", f"{name}_derained.png", status, status))
        assert len(list((cwd / "out" / "unrain-log").glob(f"{log._name}-*.jsonl"))) == 2
        log.close()
        assert len(list((cwd / "out" / "unrain-log").glob(f"{log._name}-*.jsonl"))) == 1
    assert Log("out").earlier() == {f"{name}_derained.png": ("derained", "derained") for name in "ab"}


def test_a_damaged_log_is_one_line(cwd, run):
    pictures(cwd / "in")
    (cwd / "out" / "unrain-log").mkdir(parents=True)
    (cwd / "out" / "unrain-log" / "00001-x.jsonl").write_text('{"result": ')
    code, said = run("in", "-o", "out", "--shard", "1/1")
    assert (code, said.count("\n")) == (1, 1)
    assert "00001-x.jsonl: damaged" in said


def test_a_bug_is_a_row(cwd, run, monkeypatch):
    pictures(cwd / "in", 2)
    real = worker.batch.run_job

    def broken(job, *arguments, **options):
        if job.source.name == "p0.png":
            raise ZeroDivisionError("of ours")
        return real(job, *arguments, **options)

    monkeypatch.setattr(worker.batch, "run_job", broken)
    assert run("in", "-o", "out", "--shard", "1/1")[1].endswith("unrain: 1 derained, 0 skipped, 2 failed\n")
    assert "ZeroDivisionError (of ours)" in rows(cwd / "out")["sub0/p0_derained.png"]["message"]


def test_a_full_disk_ends_the_run_and_is_tried_again(cwd, run, monkeypatch):
    pictures(cwd / "in", 3)
    real = worker.batch.run_job

    def full(job, *arguments, **options):
        raise_for = worker.files.DiskFullError("no space left on the disk")
        monkeypatch.setattr(worker.batch, "_save_all", lambda *a, **k: (_ for _ in ()).throw(raise_for))
        return real(job, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(worker.batch, "run_job", full)
        code, said = run("in/sub0", "in/sub1", "-o", "out", "--shard", "1/1")
    assert code == 1
    assert said.endswith("unrain: 0 derained, 0 skipped, 1 failed, 2 not started\n")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["in", "--shard", "1/2"], "need a folder or an address for all results after -o"),
        (["in", "-o", "-", "--shard", "1/2"], "need a folder or an address for all results after -o"),
        (["in", "-o", "x.png", "--shard", "1/2"], "x.png: a file name, but there may be several results"),
        (["-", "-o", "out", "--shard", "1/2"], "-: standard input cannot be shared out"),
        (["in", "-o", "out", "--shard", "3/2"], "--shard 3/2: give I/N with 1 <= I <= N"),
        (["in", "-o", "out", "--shard", "0/2"], "--shard 0/2: give I/N"),
        (["in", "-o", "out", "--shard", "1"], "--shard 1: give I/N"),
        (["in", "-o", "out", "--shard", "1/2", "--cluster", "auto"], "--cluster and --shard"),
        (["in", "-o", "out", "--retry-failed"], "--retry-failed: only with --cluster or --shard"),
        (["in", "-o", "out", "--workers", "3"], "--workers: only with --cluster"),
        (["in", "-o", "out", "--cluster", "local", "--workers", "3-2"], "--workers 3-2: give a number"),
        (["in", "-o", "out", "--cluster", "host"], "--cluster host: give local, auto or an address"),
        (["s3://b/x.png", "-o", "out"], "s3://b/x.png: object storage is for runs with a log"),
        (["in", "-o", "ftp://b", "--shard", "1/1"], "ftp://: no known storage"),
        (["s3://me:secret@b/x", "-o", "out", "--shard", "1/1"], "does not belong in an address"),
        (["in", "-o", "out", "--shard", "1/1", "--crf", "3"], "are for videos, but none is named"),
    ],
)
def test_wrong_usage_is_one_line(cwd, run, arguments, problem):
    flat_picture(cwd / "in" / "a.png")
    code, said = run(*arguments)
    assert (code, said.count("\n")) == (2, 1)
    assert problem in said
    assert "secret" not in said
    assert not (cwd / "out").exists()


def test_two_inputs_of_one_result_are_refused(cwd, bucket):
    flat_picture(bucket / "one" / "a.png")
    flat_picture(bucket / "two" / "a.png")
    with pytest.raises(PlanError, match=r"the result of both s3://one/a.png and s3://two/a.png"):
        find_work(["s3://one", "s3://two"], "out")
    assert len(find_work(["s3://one", "s3://one"], "out").tasks) == 1


def test_results_within_the_input_are_no_input(cwd, bucket):
    flat_picture(bucket / "one" / "a.png")
    flat_picture(bucket / "one" / "clear" / "b.png")
    assert [task.source for task in find_work(["s3://one"], "s3://one/clear").tasks] == ["s3://one/a.png"]


def test_dry_run_writes_nothing(cwd, run, capsys):
    pictures(cwd / "in", 1)
    (cwd / "in" / "film.mxf").touch()
    assert cli.main(["in", "-o", "out", "--shard", "1/1", "--dry-run"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == "in/sub0/p0.png -> out/sub0/p0_derained.png"
    assert "1 file" in said.err and ".mxf" in said.err
    assert not (cwd / "out").exists()


def test_what_killed_workers_left_is_removed(tmp_path, monkeypatch, tiny_model):
    from unrain import zoo

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / "unrain-work-left"
    left.mkdir()
    (left / "lock").write_bytes(b"")
    lives = worker.Worker(zoo.find(tiny_model), worker.batch.Settings())
    assert not left.exists()
    second = worker.Worker(zoo.find(tiny_model), worker.batch.Settings())
    assert len(list(tmp_path.iterdir())) == 2
    lives.close()
    second.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError("403"), "access denied, check the rights and the credentials"),
        (FileNotFoundError("404"), "no such object or bucket"),
        (ImportError("s3fs"), "needs s3fs, which is not installed"),
        (OSError(28, "No space"), "no space left for a copy"),
        (ValueError("at https://me:pw@host/x?sig=SECRET now"), "cannot be reached (at https://host/x now)"),
    ],
)
def test_what_storage_says_is_one_line_without_secrets(monkeypatch, error, said):
    def broken(scheme):
        raise error

    monkeypatch.setattr(storage, "_system", broken)
    with pytest.raises(UnrainError) as caught:
        storage.read("s3://b/x")
    assert str(caught.value).startswith("s3://b/x: ")
    assert said in str(caught.value)


def test_sizes_are_known_before_the_work(cwd, bucket):
    flat_picture(bucket / "one" / "a.png")
    flat_picture(cwd / "b.png")
    tasks = find_work(["s3://one", "b.png"], "out").tasks
    assert [task.size for task in tasks] == [
        (bucket / "one" / "a.png").stat().st_size,
        (cwd / "b.png").stat().st_size,
    ]
    assert inputs.Task("a.MP4", {}, "").is_video


def test_a_clip_that_was_copied_as_it_was_is_put_back_under_its_own_extension(tmp_path, monkeypatch):
    put = {}
    monkeypatch.setattr(worker.storage, "put", lambda path, name, overwrite: put.update({name: path.name}))
    target = tmp_path / "old_derained.mkv"
    copy = target.with_suffix(".avi")
    task = inputs.Task(
        "s3://in/old.avi", {"derained": "s3://out/old_derained.mkv"}, "old_derained.mkv", 0, False, False
    )
    outcome = Outcome("x", "skipped", f"no rain in it, copied to {copy}", (copy,))
    found = worker._put_back(outcome, task, tmp_path / "old.avi", {"derained": target}, overwrite=False)
    assert put == {"s3://out/old_derained.avi": "old_derained.avi"}
    assert found.written == ("s3://out/old_derained.avi",)
    assert found.message == "no rain in it, copied to s3://out/old_derained.avi"
