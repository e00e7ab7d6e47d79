"""Pools of workers: on a stand-in for Ray that loses workers when it is told to, and on Ray itself."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import textwrap

import pytest

from toys import ROOT, flat_picture
from unrain import cli, zoo
from unrain.batch import Settings
from unrain.cluster import pool
from unrain.cluster.inputs import Task, find_work
from unrain.cluster.pool import Cluster, ShippedModel, Size
from unrain.errors import UnrainError


class StandIn:
    """What of Ray is used, in this process: a call is made when its answer is waited for."""

    class exceptions:  # noqa: N801  (Ray's name)
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            def __init__(self, cause):
                super().__init__(str(cause))
                self.cause = cause

    def __init__(self, dies=lambda tasks: False, cpus=2):
        self.dies, self.cpus = dies, cpus
        self.groups, self.alive, self.most = [], 0, 0

    def put(self, value):
        return value

    def remote(self, kind):
        self.kind = kind
        return self

    def options(self, **options):
        outer = self

        class Made:
            def remote(self, *arguments):
                outer.alive += 1
                outer.most = max(outer.most, outer.alive)
                return _Handle(outer, outer.kind(*arguments))

        return Made()

    def wait(self, refs, num_returns=1, timeout=None):
        for ref in refs[:num_returns]:
            ref.answer()
        return [ref for ref in refs if ref.done], []

    def get(self, ref, timeout=None):
        if not ref.done:
            raise self.exceptions.RayError("not there")
        if ref.error is not None:
            raise ref.error
        return ref.value

    def kill(self, actor):
        actor.end()

    def cluster_resources(self):
        return {"CPU": self.cpus}

    def shutdown(self):
        pass


class _Handle:
    def __init__(self, outer, actor):
        self.outer, self.actor, self.dead = outer, actor, False

    def __getattr__(self, name):
        if name == "__ray_terminate__":
            name = "end"
        return _Method(self, name)

    def end(self):
        if not self.dead:
            self.dead = True
            self.outer.alive -= 1


class _Method:
    def __init__(self, handle, name):
        self.handle, self.name = handle, name

    def remote(self, *arguments):
        ref = _Ref(self.handle, self.name, arguments)
        if self.name in ("end", "close"):
            ref.answer()
        return ref


class _Ref:
    def __init__(self, handle, name, arguments):
        self.handle, self.name, self.arguments = handle, name, arguments
        self.done, self.value, self.error = False, None, None

    def answer(self):
        if self.done:
            return
        self.done, outer = True, self.handle.outer
        if self.name == "end":
            self.handle.end()
            return
        if self.name == "run":
            outer.groups.append([task.key for task in self.arguments[0]])
        if self.handle.dead or (self.name == "run" and outer.dies(self.arguments[0])):
            self.handle.end()
            self.error = outer.exceptions.RayError("The actor died: out of memory\nand more")
            return
        try:
            self.value = getattr(self.handle.actor, self.name)(*self.arguments)
        except Exception as error:
            self.error = outer.exceptions.RayTaskError(error)


@pytest.fixture
def cluster(monkeypatch, tiny_model):
    """A function that makes a cluster on a stand-in."""

    def make(ray, model=None, size=None, settings=None):
        monkeypatch.setattr(pool, "_connected", lambda address, host: ray)
        return Cluster(
            "auto",
            None,
            size or Size(),
            zoo.find(model or tiny_model),
            settings or Settings(),
            lambda line: None,
        )

    return make


def pictures(folder, count):
    for number in range(count):
        flat_picture(folder / f"p{number:02d}.png")
    return find_work([str(folder)], str(folder.parent / "out")).tasks


def test_every_task_has_one_row(cwd, cluster):
    tasks = pictures(cwd / "in", 40)
    ray = StandIn()
    rows = list(cluster(ray).run(tasks))
    assert sorted(row.result for row in rows) == sorted(task.key for task in tasks)
    assert {row.status for row in rows} == {"derained"}
    assert ray.most == 2
    # Large groups at first, small ones at the end.
    assert max(map(len, ray.groups)) > 4
    assert len(ray.groups[-1]) == 1


def test_groups_are_of_so_many_bytes():
    queue = pool._Pool(pool.deque(Task(f"{n}.png", {}, str(n), 3_000_000) for n in range(100)))
    assert len(queue.group(1)) == 3
    queue.queue = pool.deque(Task(f"{n}.png", {}, str(n), 100_000_000) for n in range(100))
    assert len(queue.group(1)) == 1
    queue.queue = pool.deque(Task(f"{n}.png", {}, str(n), 1000) for n in range(100))
    assert len(queue.group(1)) == 16


def test_a_picture_that_loses_workers_is_a_row_and_the_others_are_done(cwd, cluster):
    tasks = pictures(cwd / "in", 20)
    ray = StandIn(dies=lambda group: any("p07" in task.key for task in group))
    rows = list(cluster(ray).run(tasks))
    assert len(rows) == 20
    (failed,) = [row for row in rows if row.status == "failed"]
    assert failed.result == "p07_derained.png"
    assert "its worker was lost 3 times (The actor died: out of memory)" in failed.message
    assert [group for group in ray.groups if "p07_derained.png" in group][1:] == [["p07_derained.png"]] * 3


def test_what_a_lost_worker_had_written_is_no_obstacle(cwd, cluster):
    tasks = pictures(cwd / "in", 4)
    lost = []

    def dies(group):
        # It has written a result, but its row is lost with it.
        if lost:
            return False
        lost.append(group[0])
        (cwd / "out").mkdir()
        (cwd / "out" / group[0].key).write_bytes(b"of the lost worker")
        return True

    rows = list(cluster(StandIn(dies)).run(tasks))
    assert {row.status for row in rows} == {"derained"}
    for row in rows:
        assert row.result_sha256 == hashlib.sha256((cwd / "out" / row.result).read_bytes()).hexdigest()


def test_pools_grow_within_bounds_and_shrink(cwd, cluster):
    ray = StandIn(cpus=100)
    made = cluster(ray, size=Size(bounds=(1, 5)))
    assert len(list(made.run(pictures(cwd / "in", 30)))) == 30
    made.close()
    assert (ray.most, ray.alive) == (5, 0)


def test_a_model_that_does_not_open_ends_the_run(cwd, cluster, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nothing")
    with pytest.raises(UnrainError, match="not a model"):
        list(cluster(StandIn(), model=broken).run(pictures(cwd / "in", 2)))


def test_a_wrong_number_is_wrong_usage(cwd, cluster):
    with pytest.raises(UnrainError, match="tile is 1"):
        list(cluster(StandIn(), settings=Settings({"tile": 1})).run(pictures(cwd / "in", 2)))


def test_another_version_elsewhere_is_one_line(cwd, cluster, monkeypatch):
    made = cluster(StandIn())
    monkeypatch.setattr(pool.Actor, "__init__", _of_old_version)
    with pytest.raises(UnrainError, match=r"unrain 0.0.1 here, but .* on .*: install the same"):
        list(made.run(pictures(cwd / "in", 2)))


def _of_old_version(self, model, settings, version):
    self._model, self._settings, self._version, self._worker = model, settings, "0.0.1", None


def test_a_full_disk_ends_the_run(cwd, cluster, monkeypatch):
    from unrain.cluster import worker
    from unrain.plan import Outcome

    full = Outcome("x", "failed", "full", ends_run="disk full")
    monkeypatch.setattr(worker.batch, "run_job", lambda *a, **k: full)
    # What other workers had been given is still answered.
    assert len(list(cluster(StandIn()).run(pictures(cwd / "in", 40)))) <= 4


def test_a_model_travels_with_its_card(tmp_path, tiny_model):
    shipped = ShippedModel.of(zoo.find(tiny_model))
    arrived = shipped.unpacked(tmp_path)
    assert (arrived.name, arrived.card) == ("tiny", zoo.find(tiny_model).card)
    assert arrived.path.read_bytes() == tiny_model.read_bytes()
    ours = ShippedModel.of(zoo.find(zoo.DEFAULT))
    assert ours.data is None
    assert ours.unpacked(tmp_path) == zoo.find(zoo.DEFAULT)
    with pytest.raises(UnrainError, match="other weights on"):
        ShippedModel(zoo.DEFAULT, "0" * 64, {}, None).unpacked(tmp_path)


def test_nobody_at_the_address_is_one_line(cwd, capsys):
    pytest.importorskip("ray", reason="needs ray")
    flat_picture(cwd / "in" / "a.png")
    assert cli.main(["in", "-o", "out", "--cluster", "ray://127.0.0.1:1"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--cluster ray://127.0.0.1:1: nobody answers there (Connection refused)" in said
    assert not (cwd / "out").exists()


def test_without_ray_its_extra_is_named(cwd, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    flat_picture(cwd / "in" / "a.png")
    assert cli.main(["in", "-o", "out", "--cluster", "local"]) == 1
    assert "needs ray, which is not installed: pip install 'unrain[cluster]'" in capsys.readouterr().err


@pytest.mark.slow
def test_on_ray_the_results_are_those_of_one_machine_and_no_socket_leads_out(cwd, tiny_model, capsys):
    ray = pytest.importorskip("ray", reason="needs ray")
    pictures(cwd / "in", 12)
    (cwd / "in" / "bad.png").write_text("no picture")
    watch = cwd / "watch"
    watch.mkdir()
    # Every Python process of the run reports where it connects to.
    (watch / "sitecustomize.py").write_text(
        textwrap.dedent("""
        import os, sys
        def hook(event, arguments):
            if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
                where = arguments[0] if event == "socket.getaddrinfo" else arguments[1]
                kind = "" if event == "socket.getaddrinfo" else arguments[0].type.name
                if kind != "SOCK_DGRAM" or event == "socket.sendto":
                    with open(os.environ["WATCHED"], "a") as file:
                        file.write(f"{where[0] if isinstance(where, tuple) else where}\\n")
        sys.addaudithook(hook)
        """)
    )
    environment = {
        **os.environ,
        "PYTHONPATH": f"{watch}{os.pathsep}{ROOT / 'src'}",
        "WATCHED": str(cwd / "watched"),
        "RAY_USAGE_STATS_ENABLED": "1",
    }
    command = [sys.executable, "-m", "unrain", "in", "-o", "out", "--cluster", "local", "--device", "cpu"]
    command += ["--model", tiny_model]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1] == "unrain: 12 derained, 0 skipped, 1 failed"
    assert cli.main(["in", "-o", "one", "--device", "cpu", "--model", str(tiny_model)]) == 1
    for path in (cwd / "one").iterdir():
        assert (cwd / "out" / path.name).read_bytes() == path.read_bytes()
    (part,) = (cwd / "out" / "unrain-log").glob("*.jsonl")
    assert len([json.loads(line) for line in part.read_text().splitlines()]) == 13
    seen = set((cwd / "watched").read_text().splitlines())
    own = {"localhost", "127.0.0.1", "::1", "0.0.0.0", "::", "None", "", socket.gethostname()}
    own |= {ray.util.get_node_ip_address()}
    # Ray's head asks the machine's own cloud, if there is one, which it is; nothing of it is sent on.
    cloud = {"169.254.169.254", "metadata.google.internal"}
    assert seen & own
    assert {where for where in seen - own - cloud if not where.startswith("/")} == set()
