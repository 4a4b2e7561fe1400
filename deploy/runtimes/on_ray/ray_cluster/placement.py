"""Where the processes of a run go on a Ray cluster: a placement group for learners and the actors that the run begins
with, plain demands for everybody else. Knows roles; must never know what a process does."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from rollcall.cluster.errors import BadInput, RollcallError
from rollcall.deploy.config.placement import Bundle, ClusterConfig, Node, RoleConfig, bundle, shortage, total
from rollcall.deploy.plan.gpus import Shares

SLICE_S = 1  # of the wait for room
TELL_AFTER_S = 5.0

_ray: Any = ray  # parts of its interface have no types


class Placement:
    """Of one run. `reserve` comes first, `close` last."""

    def __init__(
        self,
        config: ClusterConfig,
        *,
        num_learners: int,
        num_actors: int,
        shares: Shares,
        private: bool,
        evaluates: bool = False,
        trains_on_preferences: bool = False,
    ) -> None:
        """`shares`: of GPUs, of each process; `private`: the cluster is this run's own, and nobody adds nodes to it."""
        self._config = config
        self._private = private
        self.min_actors = min(config.min_actors or num_actors, num_actors)
        self._learner = bundle("learner processes", config.learner, num_gpus=shares.learner)
        self._actor = bundle("actors", config.actors, num_gpus=shares.actor)
        self._evaluator = bundle("evaluator", _like_actors(config), num_gpus=shares.evaluator)
        groups = [self._learner] * num_learners + [self._actor] * self.min_actors
        # An evaluator that needs a GPU, or anything, has its place kept: others would take it before.
        self._keeps_evaluator = evaluates and bool(self._evaluator.demand)
        groups += [self._evaluator] * self._keeps_evaluator
        self._trainer = bundle("preference trainer", config.preference_trainer, num_gpus=0.0)
        self._beside_driver = [self._trainer] if trains_on_preferences and self._trainer.demand else []
        self._bundles = [item for item in groups if item.demand]  # who needs nothing has no bundle
        self._first_actor = num_learners if self._learner.demand else 0
        self._group: Any = None

    def reserve(self, tell: Callable[[str], None], stop_requested: Callable[[], bool]) -> None:
        """Waits until there is room for the group. `tell`: told when that takes a while.

        Raises:
          BadInput: what is missing, and for which role, when there is no room in time.
          RollcallError: a stop was requested.
        """
        self._check_beside_driver()
        if not self._bundles:
            return
        missing = self._shortage()
        if missing and self._private:
            raise BadInput(f"a private cluster on this machine lacks {missing}; it has {total(_nodes())}")
        try:
            self._group = placement_group(
                [dict(item.demand) for item in self._bundles],
                strategy=self._config.placement,
                bundle_label_selector=[dict(item.labels) for item in self._bundles],
            )
        except ValueError as error:
            raise BadInput(f"section cluster: {' '.join(str(error).split())}") from None
        began, told = time.monotonic(), False
        while not self._group.wait(SLICE_S):
            if stop_requested():
                raise RollcallError("stopped while it waited for room on the cluster: nothing had begun")
            waited_s = time.monotonic() - began
            if waited_s > self._config.room_timeout_s:
                raise BadInput(self._no_room())
            if waited_s > TELL_AFTER_S and not told:
                told = True
                tell(f"waiting for room on the cluster: {self._shortage() or 'others use what there is'}")

    def node_ids(self) -> list[str]:
        """Of the nodes on which the group lies."""
        if self._group is None:
            return []
        table: Any = placement_group_table(self._group)
        return sorted(set(table["bundles_to_node_id"].values()))

    def learner(self, rank: int) -> dict[str, Any]:
        """What `options` of a Ray actor takes; likewise of the others."""
        return self._in_group(self._learner, rank)

    def actor(self, index: int) -> dict[str, Any]:
        """Those that the run begins with have a place in the group; the others go wherever there is room."""
        if index < self.min_actors:
            return self._in_group(self._actor, self._first_actor + index)
        return _plain(self._actor)

    def parameter_server(self) -> dict[str, Any]:
        """Beside the learner, whose weights it hands out, unless the settings say where."""
        plain = _plain(bundle("", self._config.parameter_server, num_gpus=0.0))
        if plain == _plain(Bundle("", {}, {})) and self._learner.demand and self._group is not None:
            return {**plain, "scheduling_strategy": self._strategy(0)}
        return plain

    def evaluation(self) -> dict[str, Any]:
        """Where nothing else is said on nodes like those of the actors, which have the same programs."""
        if self._keeps_evaluator and self._group is not None:
            return self._in_group(self._evaluator, len(self._bundles) - 1)
        return _plain(self._evaluator)

    def scoring(self, *, beside_driver: bool) -> dict[str, Any]:
        """`beside_driver`: a private reward service listens on the driver's machine alone."""
        plain = _plain(bundle("", self._config.scoring, num_gpus=0.0))
        return _on_driver(plain) if beside_driver else plain

    def preference_trainer(self) -> dict[str, Any]:
        """Beside the reward service, which is private, and the models that it loads."""
        return _on_driver(_plain(self._trainer))

    def _check_beside_driver(self) -> None:
        """Raises BadInput: where the driver's node has never room for who must be on it."""
        here = [node for node in _ray.nodes() if node["NodeID"] == ray.get_runtime_context().get_node_id()]
        missing = shortage(self._beside_driver, [Node(node["Resources"], {}) for node in here], "PACK")
        if missing:
            raise BadInput(
                f"the driver's node lacks {missing}; set cluster.preference_trainer.num_cpus=0 where it may share"
            )

    def close(self) -> None:
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None

    def _in_group(self, item: Bundle, index: int) -> dict[str, Any]:
        plain = _plain(item)
        if not item.demand:
            return plain
        del plain["label_selector"]  # the bundle lies where they match
        return {**plain, "scheduling_strategy": self._strategy(index)}

    def _strategy(self, index: int) -> PlacementGroupSchedulingStrategy:
        return PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index)

    def _shortage(self) -> str:
        return shortage(self._bundles, _nodes(), self._config.placement)

    def _no_room(self) -> str:
        nodes, timeout_s = _nodes(), self._config.room_timeout_s
        missing = shortage(self._bundles, nodes, self._config.placement)
        if not missing:
            free = {name: amount for name, amount in _ray.available_resources().items() if name in ("CPU", "GPU")}
            words = ", ".join(f"{free.get(name, 0):g} {name}" for name in ("CPU", "GPU"))
            missing = f"room that others use now: {words} are free for {_counted(self._bundles)}"
        return (
            f"after {timeout_s:g} s (cluster.room_timeout_s) the cluster lacks {missing}; it has {total(nodes)}: ask "
            "for less (section cluster), or give it more"
        )


def _like_actors(config: ClusterConfig) -> RoleConfig:
    """The evaluator's needs."""
    needs = config.evaluation
    if needs.label_selector:
        return needs
    return needs.model_copy(update={"label_selector": config.actors.label_selector})


def _plain(item: Bundle) -> dict[str, Any]:
    others = {name: amount for name, amount in item.demand.items() if name not in ("CPU", "GPU")}
    return {
        "num_cpus": item.demand.get("CPU", 0),
        "num_gpus": item.demand.get("GPU", 0),
        "resources": others or None,
        "label_selector": dict(item.labels) or None,
    }


def _on_driver(options: dict[str, Any]) -> dict[str, Any]:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return {**options, "label_selector": None, "scheduling_strategy": here}


def _counted(bundles: Sequence[Bundle]) -> str:
    roles = list(dict.fromkeys(item.role for item in bundles))
    return ", ".join(
        f"{sum(b.role == role for b in bundles)} {role} (each {next(b for b in bundles if b.role == role).text})"
        for role in roles
    )


def _nodes() -> list[Node]:
    return [Node(node["Resources"], node.get("Labels", {})) for node in _ray.nodes() if node["Alive"]]
