"""Every metric that a run's driver serves, as a table: the one place where a name, a unit and a meaning are written.
docs/metrics.md is made from it, and rules and dashboards are checked against it. Must never know who feeds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

PREFIX = "rollcall_"
SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
STATES = ("starting", "training", "evaluating", "ending")  # of a run, in this order
ROLES = (
    *("actor", "learner", "parameter_server", "evaluator", "scoring", "preference_trainer"),
    *("reward_service", "redis", "ray"),
)

MetricKind = Literal["gauge", "counter", "histogram"]
RunKind = Literal["either", "control", "language"]


class Sample(Protocol):
    """A metric under its labels. Each kind has what is meant for it: `inc` counters, `observe` histograms."""

    def inc(self, amount: float = 1) -> None: ...
    def set(self, value: float) -> None: ...
    def observe(self, amount: float) -> None: ...
    def set_to_current_time(self) -> None: ...


class Family(Sample, Protocol):
    """A metric; without labels it is its own sample."""

    def labels(self, *values: str) -> Sample: ...


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. A metric that was never set has no sample: a zero would claim what nobody measured."""

    name: str  # without the prefix, and without what Prometheus adds to counters and histograms
    kind: MetricKind
    unit: str
    text: str
    labels: tuple[str, ...] = ()  # beside those that every metric of its server has
    runs: RunKind = "either"
    when: str = ""  # what has to happen before it has a sample; nothing: it has one from the start
    buckets: Sequence[float] = field(default=SECONDS, repr=False)

    @property
    def family(self) -> str:
        """As prometheus_client takes it."""
        return f"{PREFIX}{self.name}"

    @property
    def samples(self) -> tuple[str, ...]:
        """What queries call it."""
        if self.kind == "counter":
            return (f"{self.family}_total",)
        if self.kind == "histogram":
            return tuple(f"{self.family}_{part}" for part in ("bucket", "count", "sum"))
        return (self.family,)

    def made(self, registry: CollectorRegistry, labels: Sequence[str] = ()) -> Family:
        """The metric itself, in a registry; `labels` are those of the server."""
        names = [*labels, *self.labels]
        if self.kind == "histogram":
            made: object = Histogram(self.family, self.text, names, registry=registry, buckets=self.buckets)
        else:
            made = (Gauge if self.kind == "gauge" else Counter)(self.family, self.text, names, registry=registry)
        return cast(Family, made)


STEPPED, TRAINING = "the first learner step", "the beginning of training"  # of `when`: what others may look for
_SCORED = "the first batch that a reward service has scored"
_ROUNDS = "the second round of labels"
_REPLAYED = "an algorithm with kept experience"
_GATEWAY = "actors.outside"
_OUTSIDE = "a request of an actor outside Ray"
_REWARDED = "language, or a reward service"
_FIRST = "the fifth learner step"
_PROXY = "a reward that is not the task's own"


def _gauge(name: str, unit: str, text: str, *labels: str, runs: RunKind = "either", when: str = STEPPED) -> Metric:
    return Metric(name, "gauge", unit, text, labels, runs, when)


def _counter(name: str, unit: str, text: str, *labels: str, runs: RunKind = "either", when: str = "") -> Metric:
    return Metric(name, "counter", unit, text, labels, runs, when)


def _seconds(name: str, text: str, *, runs: RunKind = "either", when: str = STEPPED) -> Metric:
    return Metric(f"{name}_seconds", "histogram", "seconds", text, (), runs, when)


_RUN = (
    _gauge("run_info", "1", "What runs", "version", "recipe", "algorithm", "runtime", "kind", when=""),
    _gauge("run_state", "0 or 1", f"1 for what the run does now: {', '.join(STATES)}", "outcome", when=""),
    _gauge("progress_ratio", "0 to 1", "How much of the run is done", when=TRAINING),
    _gauge(
        "last_step_timestamp_seconds",
        "Unix time",
        "Of the newest learner step; before the first, of the moment training began",
        when=TRAINING,
    ),
    _counter("learner_steps", "steps", "Learner steps; skipped: not finite, and not learnt from", "outcome"),
    _counter("events", "events", "What happened, by kind", "outcome", when="the first thing worth a line"),
    _counter("restarts", "processes", "Processes started again by supervision", "role", when=TRAINING),
    _counter("starts_failed", "processes", "Killed before they had started; tried again within the budget", "role"),
    _gauge(
        "last_restart_timestamp_seconds",
        "Unix time",
        "Of the newest restart in a role, as far as it was seen",
        "role",
        when="the first restart",
    ),
    _counter("metrics_seconds", "seconds", "Time spent on these metrics, scrapes included"),
)
_TICKETS = (
    _gauge("tickets_per_step", "tickets", "B: tickets of one learner step", when=TRAINING),
    _gauge(
        "tickets_capacity",
        "tickets",
        "(max_policy_lag + 1) * B: how many may be unfinished at a time",
        when=TRAINING,
    ),
    _gauge("tickets_acting", "tickets", "Issued, and with the actors", when=TRAINING),
    _gauge("tickets_scoring", "tickets", "With the reward service", when=TRAINING),
    _gauge("tickets_queued", "tickets", "Finished, and waiting for a batch", when=TRAINING),
    _gauge("tickets_training", "tickets", "In a batch that the learner has", when=TRAINING),
    _counter(
        "tickets",
        "tickets",
        "Attempts by how they ended, from the ledger: committed, rolled_back, or the reason of a drop",
        "outcome",
        when=TRAINING,
    ),
    _counter("tickets_issued", "tickets", "Attempts issued, from the ledger", when=TRAINING),
    _gauge(
        "books_unsealed_tickets",
        "tickets",
        "Attempts that Redis holds: those that not every kept checkpoint covers, and what is not sealed yet",
        when=TRAINING,
    ),
    _counter("duplicates_refused", "tickets", "Late or second results refused, from the ledger", when=TRAINING),
)
_POLICY = (
    _gauge("policy_version", "versions", "Version of the newest published weights"),
    _gauge("policy_lag_max", "versions", "Largest policy lag in the newest batch"),
    _gauge("policy_lag_mean", "versions", "Mean policy lag in the newest batch"),
    _gauge("policy_lag_bound", "versions", "max_policy_lag: what no lag may exceed", when=TRAINING),
    _gauge("bound_fraction_ratio", "0 to 1", "Speed as a fraction of the pipelined bound"),
    _seconds("step", "From one learner step's end to the next one's"),
    _seconds("wait_batch", "The learner waited for a batch, per step"),
    _seconds("update", "One learner update"),
    _seconds("act", "The busiest actor's work on one batch"),
    _seconds("publish", "Publishing one version of the weights"),
    _seconds("score", "Scoring one batch, waiting for a service that is away included", when=_SCORED),
    _seconds("weights_apply", "The engines loaded weights, per learner step", runs="language"),
    _gauge("loss", "1", "The loss, mean over the step's minibatches"),
    _gauge("grad_norm", "1", "Global norm of the gradient before clipping, mean over the step's minibatches"),
    _gauge("learning_rate", "1", "Learning rate of the newest step"),
    _gauge("entropy_nats", "nats", "Mean entropy of the policy, per step or token"),
    _gauge("approx_kl_nats", "nats", "Mean KL estimate from the acting to the learning policy", when="an update of it"),
    _gauge("clip_fraction_ratio", "0 to 1", "Where the policy ratio was clipped", when="an algorithm that clips"),
    _gauge("value_loss", "1", "The critic's loss", when="an algorithm with a critic"),
    _gauge("reward_mean", "1", "Mean reward of the newest batch: per completion, or per scored step", when=_REWARDED),
    _gauge(
        "reward_disagreement", "1", "How far a reward's ensemble is apart, mean of the newest batch", when="an ensemble"
    ),
    _gauge(
        "reward_fresh_accuracy_ratio", "0 to 1", "New labels that the last reward model was right about", when=_ROUNDS
    ),
    _gauge("reward_fresh_accuracy_low_ratio", "0 to 1", "Lower end of that share's 95% interval", when=_ROUNDS),
    _counter("reward_model_changes", "changes", "Reward models that followed another", when=_SCORED),
    _gauge(
        "reward_model_changed_timestamp_seconds",
        "Unix time",
        "When the newest reward model was first seen in a batch",
        when=_SCORED,
    ),
)
_CONTROL = (
    _gauge("return_mean", "1", "Mean undiscounted return of the last 100 training episodes", runs="control"),
    _gauge("eval_return_mean", "1", "Mean return of the newest evaluation", runs="control", when="an evaluation"),
    _gauge("episode_length_mean", "env steps", "Mean length of the last 100 training episodes", runs="control"),
    _gauge(
        "explained_variance_ratio",
        "up to 1",
        "Of the variance of a batch's returns, what the critic knew before it learnt from them; 1: all, 0: nothing",
        runs="control",
        when="an algorithm with a critic of states",
    ),
    _gauge(
        "kl_old_nats",
        "nats",
        "Exact mean KL from the policy before a batch's update to that after it",
        runs="control",
        when="trpo, or a KL penalty",
    ),
    _gauge("kl_penalty_coef", "1", "Weight of the KL penalty in the newest batch", runs="control", when="a KL penalty"),
    _gauge(
        "intrinsic_reward_mean",
        "1",
        "Mean reward for what is new, per step of the newest batch, normalised",
        runs="control",
        when="rnd",
    ),
    _counter("env_steps", "env steps", "Environment steps learned from", runs="control", when=STEPPED),
    _counter("episodes", "episodes", "Episodes that ended", runs="control", when=STEPPED),
    _counter("env_restarts", "envs", "Environments started anew after they raised", runs="control", when=STEPPED),
    _gauge("action_value", "1", "Mean value of the actions that were drawn", runs="control", when=_REPLAYED),
    _gauge("td_error", "1", "Mean absolute TD error of what was drawn", runs="control", when=_REPLAYED),
    _gauge("temperature", "1", "What a nat of entropy is worth in reward", runs="control", when="sac"),
    _gauge("replay_transitions", "transitions", "Kept in the replay buffer", runs="control", when=_REPLAYED),
    _gauge(
        "replay_bytes", "bytes", "What the replay buffer keeps, priorities included", runs="control", when=_REPLAYED
    ),
    _gauge(
        "replay_age_versions",
        "versions",
        "Mean age of what the newest step drew: versions since it was acted",
        runs="control",
        when=_REPLAYED,
    ),
    _gauge(
        "replay_age_env_steps",
        "env steps",
        "Mean age of what the newest step drew: env steps that came in since",
        runs="control",
        when=_REPLAYED,
    ),
    _gauge(
        "priority_evenness_ratio",
        "0 to 1",
        "How evenly priorities spread what is drawn; 1: all alike, near 0: a few are drawn again and again",
        runs="control",
        when="prioritised replay",
    ),
    _gauge("outside_actors", "actors", "Actors outside Ray that are here", runs="control", when=_GATEWAY),
    _counter(
        "outside_requests",
        "requests",
        "Requests of actors outside Ray, by kind and HTTP status",
        "request",
        "status",
        runs="control",
        when=_OUTSIDE,
    ),
    _counter(
        "outside_refused",
        "requests",
        "Requests of actors outside Ray that were not granted, by reason; repeated: posts that were answered again",
        "outcome",
        runs="control",
        when=_OUTSIDE,
    ),
)
_LANGUAGE = tuple(
    Metric(name, cast(MetricKind, kind), unit, text, labels, "language", when)
    for name, kind, unit, text, labels, when in (
        ("exact_match_ratio", "gauge", "0 to 1", "Completions of the newest batch that are right", (), STEPPED),
        ("unparsed_ratio", "gauge", "0 to 1", "Completions without an answer that can be read", (), STEPPED),
        ("truncated_ratio", "gauge", "0 to 1", "Completions of the newest batch cut for length", (), STEPPED),
        ("degenerate_ratio", "gauge", "0 to 1", "Prompts whose samples' rewards are all equal", (), STEPPED),
        ("completion_length_tokens", "gauge", "tokens", "Mean length of the newest completions", (), STEPPED),
        ("kl_reference_nats", "gauge", "nats", "Mean KL estimate to the reference, per token", (), "a KL penalty"),
        (
            "ptx_loss",
            "gauge",
            "nats",
            "Loss of what is imitated beside, per token",
            (),
            "algorithm.ptx_coef",
        ),
        ("logprob_mismatch_nats", "gauge", "nats", "Mean |learner's - engine's log-probability|", (), STEPPED),
        (
            "fresh_mismatch_nats",
            "gauge",
            "nats",
            "The same, of tokens without lag, before the update",
            (),
            "a token without lag",
        ),
        ("eval_exact_match_ratio", "gauge", "0 to 1", "Held-out problems solved", (), "an evaluation"),
        ("eval_reward_mean", "gauge", "1", "The same, by the task's own reward", (), "eval.measure=reward"),
        ("eval_lost_ratio", "gauge", "0 to 1", "Below the best evaluation, beyond noise", (), "an evaluation"),
        ("repeated_ngram_ratio", "gauge", "0 to 1", "4-grams that a completion had before, mean", (), STEPPED),
        ("identical_ratio", "gauge", "0 to 1", "Completions that are as an earlier one of their batch", (), STEPPED),
        ("task_reward_mean", "gauge", "1", "Mean of the task's own reward: nobody learns from it", (), _PROXY),
        ("task_reward_lost_ratio", "gauge", "0 to 1", "How far it is below its best, beyond noise", (), _PROXY),
        ("reward_gain_deviations", "gauge", "std", "Of the reward, since the first 5 steps, smoothed", (), _PROXY),
        ("task_reward_gain_deviations", "gauge", "std", "The same of the task's own reward", (), _PROXY),
        ("reward_agreement_ratio", "gauge", "0 to 1", "Pairs that reward and task order alike", (), _PROXY),
        ("first_steps_mean", "gauge", "as `of` has it", "Mean of the first 5 learner steps", ("of",), _FIRST),
        (
            "tokens",
            "counter",
            "tokens",
            "Generated and learned from, and trained in updates",
            ("stage",),
            STEPPED,
        ),
        ("prompts_dropped", "counter", "prompts", "Given up, by what their samples came to", ("outcome",), STEPPED),
        ("engine_running_requests", "gauge", "requests", "Running at an engine step, mean of a batch", (), STEPPED),
        ("engine_waiting_requests", "gauge", "requests", "Waiting at an engine step, mean of a batch", (), STEPPED),
        ("engine_kv_cache_usage_ratio", "gauge", "0 to 1", "Largest share of an engine's KV cache in use", (), STEPPED),
        ("engine_canary_nats", "gauge", "nats", "Of the engine farthest from the learner, same weights", (), STEPPED),
        ("engine_canary_bound_nats", "gauge", "nats", "Beyond this the run stops, by dtype", (), STEPPED),
        ("engine_steps", "counter", "steps", "Steps that the engines made for batches learned from", (), STEPPED),
        (
            "engine_prompt_tokens",
            "counter",
            "tokens",
            "Of prompts, by prefix cache: hit or miss",
            ("outcome",),
            STEPPED,
        ),
    )
)
_PLATFORM = (
    _gauge(
        "last_checkpoint_timestamp_seconds",
        "Unix time",
        "Of the newest checkpoint, or of going on from it",
        when="the first checkpoint",
    ),
    _gauge("last_checkpoint_step", "steps", "Learner steps in the newest checkpoint", when="the first checkpoint"),
    _gauge("last_checkpoint_bytes", "bytes", "Size of the newest checkpoint", when="the first checkpoint"),
    _gauge("redis_up", "0 or 1", "Whether Redis answered the last ping", when=TRAINING),
    _gauge("redis_ping_seconds", "seconds", "How long the last ping took", when=TRAINING),
    _gauge("disk_free_bytes", "bytes", "Free where the run directory is", when=TRAINING),
    _gauge("disk_size_bytes", "bytes", "Size of the disk that the run directory is on", when=TRAINING),
)

DRIVER_LABELS = ("run", "policy", "env")
DRIVER = (*_RUN, *_TICKETS, *_POLICY, *_CONTROL, *_LANGUAGE, *_PLATFORM)
