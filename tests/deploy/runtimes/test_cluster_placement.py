"""What a run needs of a cluster, whether one has it, and who works on what while actors come and go: without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from rollcall.cluster.errors import BadInput
from rollcall.deploy.config.placement import Bundle, Node, RoleConfig, bundle, matches, shortage, total
from rollcall.deploy.runtimes.lanes import Lanes
from tests.runs import config_of

LEARNER = Bundle("learner processes", {"CPU": 1, "GPU": 1}, {})
ACTOR = Bundle("actors", {"CPU": 2}, {"zone": "b"})
CPU_NODE = Node({"CPU": 4, "memory": 1e9, "node:127.0.0.1": 1}, {"zone": "b"})
GPU_NODE = Node({"CPU": 4, "GPU": 1}, {"zone": "a"})


def test_a_role_asks_for_what_its_settings_say() -> None:
    role = RoleConfig(num_cpus=2, resources={"licence": 1}, label_selector={"zone": "b"})
    assert bundle("actors", role, num_gpus=1.0).demand == {"CPU": 2, "GPU": 1, "licence": 1}
    assert bundle("actors", role.model_copy(update={"num_gpus": 0.0}), num_gpus=1.0).demand == {"CPU": 2, "licence": 1}


@pytest.mark.parametrize(
    ("wanted", "found", "expected"),
    [
        ("b", "b", True),
        ("b", "a", False),
        ("b", None, False),
        ("!b", "a", True),
        ("!b", None, True),
        ("!b", "b", False),
        ("in(a, b)", "b", True),
        ("in(a,b)", "c", False),
        ("!in(a, b)", "c", True),
        ("!in(a, b)", "a", False),
    ],
)
def test_label_selectors_mean_what_ray_means(wanted: str, found: str | None, expected: bool) -> None:
    assert matches({} if found is None else {"zone": found}, {"zone": wanted}) is expected


@pytest.mark.parametrize(
    ("bundles", "nodes", "strategy", "words"),
    [
        ([LEARNER, ACTOR, ACTOR], [CPU_NODE, GPU_NODE], "PACK", []),
        (
            [LEARNER],
            [CPU_NODE],
            "PACK",
            ["1 of 1 learner processes (each 1 CPU, 1 GPU)", "no node has more than 0 GPU"],
        ),
        ([ACTOR], [GPU_NODE], "PACK", ["1 of 1 actors", "zone=b", "no node has these labels"]),
        ([ACTOR] * 3, [CPU_NODE], "PACK", ["1 of 3 actors", "the others take all that there is"]),
        ([LEARNER, LEARNER], [CPU_NODE, GPU_NODE], "PACK", ["1 of 2 learner processes"]),
        ([LEARNER, ACTOR], [CPU_NODE, GPU_NODE], "STRICT_PACK", ["STRICT_PACK leaves them no place"]),
        (
            [ACTOR, ACTOR],
            [CPU_NODE, GPU_NODE],
            "STRICT_SPREAD",
            ["1 of 2 actors", "STRICT_SPREAD leaves them no place"],
        ),
        ([ACTOR, LEARNER], [CPU_NODE, GPU_NODE], "STRICT_SPREAD", []),
        ([ACTOR], [], "PACK", ["1 of 1 actors", "no node has these labels"]),
    ],
)
def test_what_a_cluster_lacks_is_said_role_by_role(
    bundles: Sequence[Bundle], nodes: Sequence[Node], strategy: str, words: Sequence[str]
) -> None:
    missing = shortage(bundles, nodes, strategy)  # type: ignore[arg-type]
    assert bool(missing) == bool(words)
    for word in words:
        assert word in missing


def test_a_cluster_is_described_by_what_can_be_asked_of_it() -> None:
    assert total([CPU_NODE, GPU_NODE]) == "2 nodes with 8 CPU, 1 GPU"
    assert total([]) == "0 nodes with 0 CPU, 0 GPU"


def test_what_a_run_needs_of_a_cluster_is_checked_and_is_not_in_the_hash() -> None:
    plain = config_of("cartpole-ppo")
    spread = config_of("cartpole-ppo", ["cluster.placement=SPREAD", "cluster.actors.resources={licence: 0.5}"])
    assert spread.config_hash == plain.config_hash
    assert spread.cluster.actors.resources == {"licence": 0.5}
    for wrong, words in (
        ("cluster.actors.num_cpus=-1", "cluster.actors.num_cpus = -1"),
        ("cluster.placement=TOGETHER", "cluster.placement = 'TOGETHER'"),
        ("cluster.actor.num_cpus=1", "did you mean cluster.actors"),
    ):
        with pytest.raises(BadInput) as caught:
            config_of("cartpole-ppo", [wrong])
        assert words in str(caught.value) and "\n" not in str(caught.value)


@dataclass(eq=False)
class Actor:
    is_up: bool = True
    is_coming: bool = False


def test_lanes_are_at_home_and_elsewhere_only_while_their_home_is_away() -> None:
    one, two = actors = [Actor(), Actor()]
    lanes = Lanes(actors, keep_state=True)
    assert [lanes.choose(lane) for lane in range(4)] == [one, two, one, two]
    for lane in range(4):
        lanes.given(lane, actors[lane % 2], 10 + lane)
    two.is_up = False
    assert lanes.lost(two) == {1: 11, 3: 13}
    assert [lanes.choose(lane) for lane in range(4)] == [one] * 4
    lanes.given(1, one, 15)
    two.is_up = True
    assert lanes.choose(3) is two, "nobody held it"
    assert lanes.choose(1) is one and lanes.may_move_home(1), "its state is elsewhere, until it is moved"
    lanes.stays(1)
    assert not lanes.may_move_home(1)
    assert lanes.lost(one) == {0: 10, 1: 15, 2: 12}
    assert not lanes.may_move_home(1)


def test_lanes_without_state_go_to_whoever_is_there() -> None:
    one, two = actors = [Actor(), Actor(is_up=False, is_coming=True)]
    lanes = Lanes(actors, keep_state=False)
    lanes.given(1, one, 1)
    assert [lanes.choose(lane) for lane in range(3)] == [one] * 3
    two.is_up = True
    assert lanes.choose(1) is two and not lanes.may_move_home(1)
    one.is_up = two.is_up = False
    assert lanes.choose(0) is two, "on its way: what it is given waits there"
    two.is_coming = False
    assert lanes.choose(0) is None
