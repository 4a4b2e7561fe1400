"""The drive of a run with actors: opens the books, starts the members, runs the coordinator, and puts together what
there is to say of it. No algorithm and no environment is known by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rollcall.cluster.books.ledger import Ledger
from rollcall.cluster.books.sealed import SealedBooks
from rollcall.cluster.books.settings_history import SettingsHistory
from rollcall.cluster.checkpoint import CheckpointWriter, Manifest, latest_checkpoint, list_checkpoints, read_state
from rollcall.cluster.errors import BadInput, ClusterLost, RollcallError
from rollcall.cluster.loop.coordinator import Coordinator
from rollcall.cluster.loop.run import RunPlan
from rollcall.cluster.loop.supervision import FailureBudget, RestartBudget, Watchdog
from rollcall.cluster.parameter_server import ParameterServer
from rollcall.cluster.store.store import Store, open_store
from rollcall.deploy.config.recipe.language_config import ActingConfig
from rollcall.deploy.drive.fresh_raters import FreshRaters
from rollcall.deploy.drive.nested import NestedRuns
from rollcall.deploy.drive.planned import plan_here, plan_on
from rollcall.deploy.drive.ray_again import RayAgain
from rollcall.deploy.drive.records import refuse_foreign
from rollcall.deploy.drive.run_facts import facts_of
from rollcall.deploy.drive.run_watch import MetricsRecorder, RunWatch
from rollcall.deploy.drive.signals import nothing_to_keep
from rollcall.deploy.gateway.opening import with_gateway
from rollcall.deploy.kinds.kind import POLICY_ID, MemberFactory
from rollcall.deploy.plan.planning import Plan
from rollcall.deploy.report.phase_line import phase
from rollcall.deploy.report.recorders import Record, Recorder
from rollcall.deploy.rundir.files import consumption_log
from rollcall.deploy.rundir.jobs import stop_patience_s
from rollcall.deploy.runtimes.preference_gate import PreferenceGate
from rollcall.deploy.runtimes.serial_runtime import SerialWorkers, TrainerInTurn
from rollcall.deploy.runtimes.uncollected import uncollected
from rollcall.learners.collective import Collective

KEEP_VERSIONS = 2
FINAL_EVAL_TIMEOUT_S = 900.0


class OnlineDrive:
    """One driver's part of a run with actors: from opening the books to its last evaluation."""

    def __init__(
        self,
        config: ActingConfig,
        factory: MemberFactory,
        recorder: Recorder,
        segments: SettingsHistory,
        stop_requested: Callable[[], bool],
        nested: NestedRuns,
    ) -> None:
        """`segments`: of a run whose settings were changed, or written by another release."""
        self._config = config
        self._factory = factory
        self._directory = factory.run_directory
        self._recorder = recorder
        self._segments = segments
        self._stop_requested = stop_requested
        self._nested = nested
        self._evaluations: list[Mapping[str, Any]] = []  # of the policy before its first update, and the newest
        self._workers: Any = None
        self._port: int | None = None  # of the metrics
        self._has_begun = False
        self.plan: Plan | None = None
        self.facts: dict[str, Any] = {"runtime": config.runtime}  # for the summary

    def carry_out(self, *, resume: bool) -> str:
        """To the end, or to a checkpoint once a stop is requested. Returns the run's status.

        Raises:
          BadInput: before anything is begun, where the members do not fit or cannot be had.
          RollcallError: when the run cannot go on.
        """
        config = self._config
        self._watch = RunWatch(config, self._directory, self._factory)
        rounds = [FreshRaters(self._directory)] if self._factory.trains_on_preferences else []
        self._recorders: list[Recorder] = [*rounds, self._recorder, MetricsRecorder(self._watch, self._evaluations)]
        self._again = RayAgain(config.supervision, self._directory, self._tell, self._stop_requested)
        self._factory.check()  # what does not fit is said before anything is begun
        with nothing_to_keep(), phase(self._recorder, "the plan"), uncollected():  # it imports transformers
            self.plan, self._factory = plan_here(config, self._factory, self._directory, self._tell)
        (self._directory / "logs").mkdir(parents=True, exist_ok=True)
        start = self._starting_point() if resume else None
        try:
            self._port = self._watch.open()
            with open_store(config.redis, self._directory) as store:
                store.acquire_lock()
                self._watch.probe(store)
                sealed = SealedBooks(self._directory)
                books = Ledger(store, tickets_per_step=config.tickets_per_step, books=sealed)
                self._begin_workers()
                with self._reward_service():
                    while True:
                        try:
                            return self._see_through(store, books, start)
                        except ClusterLost as lost:
                            if self._stop_requested() and list_checkpoints(self._directory):
                                return "stopped"
                            start = self._start_anew(lost, store)
        finally:
            if self._workers is not None:
                self._workers.close()  # after the store: Ray's end ends every child of this process, Redis among them
            self._watch.close()

    def _begin_workers(self) -> None:
        """Those on Ray, whose processes import what they need while what they load is being prepared."""
        with nothing_to_keep():
            if self._config.runtime == "ray":
                self._again.tried(self._prepared_on_ray)
            else:
                self._nested.prepare(self._factory, self._stop_requested)

    def _prepared_on_ray(self) -> None:
        """Raises ClusterLost: it has to be done again."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None
        with phase(self._recorder, "Ray"):
            self._workers = workers = self._ray_workers()
        try:
            self._nested.prepare(self._factory, lambda: workers.is_lost or self._stop_requested())
        except RollcallError:
            workers.check()
            raise
        workers.check()

    def _start_anew(self, lost: ClusterLost, store: Store) -> tuple[Path, Manifest] | None:
        """Another cluster. Returns what the run goes on from there: nothing, where it had not come to a checkpoint."""
        self._workers.close()
        self._workers = None
        self._again.after(lost)
        self._begin_workers()
        self._watch.probe(store)
        self._watch.failed = False
        return self._starting_point() if list_checkpoints(self._directory) else None

    def known_from(self, records: Iterable[Record]) -> dict[str, Any]:
        """What metrics.jsonl still says of a run that failed."""
        last: Record = {}
        largest, total, number = 0, 0.0, 0
        for last in records:
            largest = max(largest, last.get("lag_max") or 0)
            if last.get("lag_mean") is not None:
                total, number = total + last["lag_mean"], number + 1
        train_s, counts = float(last.get("elapsed_s") or 0.0), self._factory.counts
        return {
            "train_s": train_s,
            "learner_steps": int(last["step"]) + 1 if last else 0,
            **counts.done(int(last.get(counts.key) or 0), train_s),
            "final_eval": None,
            "policy_lag": {"max": largest, "mean": total / number if number else 0.0},
            "ledger": None,
            "restarts": None,
        }

    def _see_through(self, store: Store, books: Ledger, start: tuple[Path, Manifest] | None) -> str:
        """From the first ticket to the last evaluation. What there is to say is put together however it ends, while the
        books are open."""
        if self._config.runtime == "ray":
            self._workers.prepared(self._factory.reward)
        else:
            self._workers = self._serial_workers()
        if (outside := self._factory.outside) is not None:
            self._workers = with_gateway(self._workers, outside, self._directory, self._watch.metrics, self._tell)
        workers, coordinator = self._workers, None
        try:
            checkpoints = CheckpointWriter(self._directory, keep=self._config.checkpoint.keep)
            coordinator = self._coordinator(store, books, workers, checkpoints)
            store.waits_no_longer = coordinator.stops_while_store_is_away
            self._begin(coordinator, workers, start)
            self._watch.training(coordinator.state, store)
            coordinator.run()
            self._watch.metrics.enter("evaluating")
            self._evaluate(coordinator, workers)
        except BaseException as problem:
            self._watch.failed = not isinstance(problem, BadInput)
            raise
        finally:
            self._watch.rest()
            if coordinator is not None:
                found = facts_of(coordinator, books, workers, self._evaluations, self._factory.counts)
                self.facts |= {**found, "restarts": coordinator.restarts + self._again.restarts}
        return "completed" if coordinator.finished else "stopped"

    # Beginning.

    def _starting_point(self) -> tuple[Path, Manifest]:
        checkpoint, manifest, warnings = latest_checkpoint(self._directory)
        for warning in warnings:
            self._tell("checkpoint_damaged", warning)
        refuse_foreign(self._segments, checkpoint, manifest)
        return checkpoint, manifest

    @contextmanager
    def _reward_service(self) -> Iterator[None]:
        config = self._factory.reward_config
        if config is None:
            yield
            return
        from rollcall.deploy.drive.reward_launch import PAGE_PATH, TOKEN_VARIABLE, reward_endpoint  # a web server's

        watched, members = (self._config.supervision, self._tell, self._stop_requested), self._factory
        with reward_endpoint(
            config,
            self._directory,
            *watched,
            scored=members.scored,
            labelling=members.labelling,
            exact=self._config.max_policy_lag == 0,
        ) as endpoint:
            if members.asks_people:
                self._tell("labels", f"label at {endpoint.url}{PAGE_PATH}, with the token of ${TOKEN_VARIABLE}")
            self._factory = members.with_reward(endpoint)
            yield

    def _ray_workers(self) -> Any:
        from rollcall.deploy.runtimes.on_ray.launch import ray_workers  # and ray with it

        return ray_workers(
            self._config,
            self._factory,
            self._directory,
            self._tell,
            keep_versions=KEEP_VERSIONS,
            train_reward_model=self._nested.train_reward_model,
            stop_requested=self._stop_requested,
            plan=self.plan,
            plan_on=lambda machines: plan_on(machines, self._config, self._factory, self._tell),
        )

    def _serial_workers(self) -> Any:
        server = ParameterServer(keep=KEEP_VERSIONS)
        if self.plan is not None:
            self._factory = self._factory.with_gpus(self.plan.shares)
        with nothing_to_keep():
            num_actors = self._config.actors.num
            actor = self._factory.actor(f"{self._factory.actor_prefix}-0", server) if num_actors else None
            learner = self._factory.learner(Collective())
        return SerialWorkers(
            actor=actor,
            learner=learner,
            parameter_server=server,
            evaluator=self._factory.evaluator,
            episodes=self._factory.eval_episodes,
            scorer=self._factory.scorer() if self._factory.reward is not None else None,
            gate=self._gate(),
        )

    def _gate(self) -> PreferenceGate | None:
        """Of a serial run from preferences."""
        training = self._factory.preference_training
        if training is None:
            return None
        trainer = training.trainer(partial(self._nested.train_reward_model, stop_requested=self._stop_requested))
        budget = RestartBudget("the preference trainer", max_restarts=0, window_s=1.0)
        patience_s = training.config.patience_s
        return PreferenceGate(TrainerInTurn(trainer), due=training.due, patience_s=patience_s, budget=budget)

    def _coordinator(self, store: Store, books: Ledger, workers: Any, checkpoints: CheckpointWriter) -> Coordinator:
        config = self._config
        # A serial run, and one at lag 0, has nothing in flight at a step boundary: env state can be part of it.
        at_rest = config.runtime == "serial" or config.max_policy_lag == 0
        plan = RunPlan(
            run_id=store.run_id,
            run_seed=config.seed,
            policy_id=POLICY_ID,
            config_hash=self._segments.config_hash,
            tickets_per_step=config.tickets_per_step,
            max_policy_lag=config.max_policy_lag if config.runtime == "ray" else 0,
            on_stale=config.actors.on_stale,
            total_learner_steps=config.learner_steps,
            total_env_steps=config.env_steps,
            ticket_deadline_s=config.actors.ticket_deadline_s,
            checkpoint_every_steps=config.checkpoint_every_steps,
            eval_every_steps=config.eval_every_steps if self._factory.eval_episodes else None,
            prefetch_steps=1 if config.runtime == "ray" and config.max_policy_lag > 0 else 0,
            consumption_log=consumption_log(self._directory),
            exact_checkpoints=at_rest and self._factory.can_be_exact,
            scored=self._factory.reward is not None,
            stop_patience_s=stop_patience_s(),
            drop_degenerate=config.drop_degenerate,
        )
        return Coordinator(
            plan,
            tasks=self._factory.work(),
            workers=workers,
            ledger=books,
            checkpoints=checkpoints,
            observers=self._recorders,
            watchdog=Watchdog(warning_s=config.supervision.stall_warning_s, timeout_s=self._stall_timeout_s),
            failures=FailureBudget(max_failures=config.supervision.max_failures),
            stop_requested=self._stop_requested,
        )

    @property
    def _stall_timeout_s(self) -> float:
        """Whoever waits for a reward service, or for people, ends the run itself when its patience is over."""
        reward = self._factory.reward
        return max(self._config.supervision.stall_timeout_s, 0.0 if reward is None else 1.1 * reward.patience_s)

    def _begin(self, coordinator: Coordinator, workers: Any, start: tuple[Path, Manifest] | None) -> None:
        if start is None:
            epoch, version, checkpoint, shard_state = coordinator.begin(), 0, None, None
        else:
            checkpoint, manifest = start
            epoch, version = coordinator.resume(manifest), manifest.step
            shard_state = read_state(checkpoint, "shards") if manifest.tier == "exact" else None
        with nothing_to_keep():
            workers.start(checkpoint, shard_state=shard_state)
            workers.publish_initial(epoch=epoch, version=version)
            with phase(self._recorder, "the learner and the actors"):
                coordinator.wait_for_workers()
        info = {
            "start_step": version,
            "epoch": epoch,
            "total_learner_steps": self._config.learner_steps,
            "total_env_steps": self._config.env_steps,
            "counts": self._factory.counts.key,
            "metrics_url": f"http://{self._config.metrics.host}:{self._port}/metrics" if self._port else None,
        }
        for recorder in () if self._has_begun else self._recorders:
            recorder.on_start(info)
        if self._has_begun:  # and goes on with another cluster
            self._tell("restored", f"step {version}")
        self._has_begun = True
        if start is None:
            coordinator.checkpoint_now()  # where a learner that dies early goes back to
            if self._factory.eval_episodes and self._factory.evaluates_at_start:
                workers.submit_eval(step=0, env_steps=0)

    # Ending.

    def _evaluate(self, coordinator: Coordinator, workers: Any) -> None:
        """Finishes evaluations under way, and after a completed run makes the final one."""
        if coordinator.finished and self._factory.eval_episodes > 0:
            workers.submit_eval(step=coordinator.step, env_steps=coordinator.counters.env_steps)
            coordinator.wait_for_evals(FINAL_EVAL_TIMEOUT_S, lambda: workers.evals_pending)

    def _tell(self, kind: str, text: str) -> None:
        for recorder in self._recorders:
            recorder.on_event(kind, text)
