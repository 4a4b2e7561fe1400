"""What a node lacks that is to work for a run, as it says itself; on a real cluster: tests/end_to_end/test_jobs.py."""

from __future__ import annotations

import errno
import itertools
import sys
from pathlib import Path

import pytest

from rollcall.cluster.errors import BadInput, RollcallError
from rollcall.deploy.rundir.storage_faults import storage_fault
from rollcall.deploy.runtimes.on_ray.ray_cluster import nodes as ray_nodes
from tests.deploy.runtimes.on_ray.fake_ray import FakeRay, Handle


@pytest.fixture
def needs(tmp_path: Path) -> ray_nodes.Needs:
    (tmp_path / "run" / "logs").mkdir(parents=True)
    return ray_nodes.Needs(
        rollcall=ray_nodes.own_version(),
        generates=False,
        modules=(),
        working_directory=str(tmp_path),
        run_directory=tmp_path / "run",
    )


def changed(needs: ray_nodes.Needs, **values: object) -> ray_nodes.Needs:
    return ray_nodes.Needs(**{name: getattr(needs, name) for name in needs.__dataclass_fields__} | values)  # type: ignore[arg-type]


def test_a_node_that_has_everything_lacks_nothing_and_nothing_is_left_behind(
    needs: ray_nodes.Needs, tmp_path: Path
) -> None:
    (tmp_path / "module_of_a_user.py").write_text("")
    assert ray_nodes.lacks(changed(needs, modules=("module_of_a_user",))) == ""
    assert list((needs.run_directory / "logs").iterdir()) == []
    sys.modules.pop("module_of_a_user")
    sys.path.remove(str(tmp_path))


def test_what_a_node_lacks_is_said_with_its_remedy(
    needs: ray_nodes.Needs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "the driver 0.0.1" in ray_nodes.lacks(changed(needs, rollcall="0.0.1"))
    unseen = ray_nodes.lacks(changed(needs, run_directory=tmp_path / "elsewhere"))
    assert "does not see the run directory" in unseen and "ROLLCALL_RUNS" in unseen
    absent = ray_nodes.lacks(changed(needs, modules=("module_that_nobody_wrote",)))
    assert "cannot import module_that_nobody_wrote" in absent and "--working-dir" in absent
    sys.path.remove(str(tmp_path))
    monkeypatch.setattr("rollcall.actors.engine.settings.KNOWN_VERSIONS", ("0.0.1",))
    assert "cannot generate: " in ray_nodes.lacks(changed(needs, generates=True))


class Nodes:
    """Two of them, and what they answer; a look at the stop takes a second."""

    def __init__(self, needs: ray_nodes.Needs, stop_after: float = float("inf")) -> None:
        self.ray, self.needs, self.stop_after = FakeRay(), needs, stop_after
        self.handles = {name: Handle(name) for name in ("one", "two")}
        self.looks = itertools.count()

    def stop_requested(self) -> bool:
        assert all(handle.asked for handle in self.handles.values()), "all are asked at once"
        self.ray.now += 1
        return next(self.looks) >= self.stop_after

    def check(self, **answers: str) -> None:
        def ask(node_id: str, needs: ray_nodes.Needs) -> object:
            reference = self.handles[node_id].lacks.remote(needs)
            if node_id in answers:
                reference.answers(answers[node_id])
            return reference

        ray_nodes.check_nodes([*self.handles], self.needs, self.ray.calls(), self.stop_requested, ask=ask)


def test_nodes_are_asked_at_once_and_the_first_that_lacks_something_is_named(needs: ray_nodes.Needs) -> None:
    Nodes(needs).check(one="", two="")
    with pytest.raises(BadInput, match="node two cannot generate"):
        Nodes(needs).check(two="cannot generate")


def test_all_nodes_have_one_deadline_and_a_stop_ends_the_wait_at_the_next_look(needs: ray_nodes.Needs) -> None:
    silent = Nodes(needs)
    with pytest.raises(BadInput, match="node one did not answer within 180 s"):
        silent.check(two="")
    assert next(silent.looks) == 181
    stopped = Nodes(needs, stop_after=3)
    with pytest.raises(RollcallError, match="stopped while the nodes were asked"):
        stopped.check(two="")
    assert max(stopped.ray.waited_s) <= ray_nodes.SLICE_S


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/runs/x/metrics.jsonl"), "/runs/x/metrics.jsonl: No space"),
        (OSError(errno.EROFS, "Read-only file system"), "the run directory: Read-only"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "os error 28"),
        (OSError(errno.ENOENT, "No such file or directory"), ""),
        (RuntimeError("os error 28"), ""),
    ],
)
def test_a_disk_that_refuses_is_told_from_other_faults(error: Exception, words: str) -> None:
    assert words in storage_fault(error) and bool(words) == bool(storage_fault(error))
