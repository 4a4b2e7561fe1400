"""The overview of runs, whose first screen says whether a run is healthy, whether it learns and what limits it; and the
queries' building blocks for the pages beside it."""

from __future__ import annotations

from rollcall.deploy.tools.monitoring.dashboards import (
    Annotation,
    Dashboard,
    Panel,
    Query,
    Row,
    Variable,
    alarm,
    share,
    stat,
)

RUN = 'run=~"$run"'
OF = f'{{{RUN},policy=~"$policy"}}'
OR_NONE = 'run=~"$run|"'  # also what belongs to no run, such as a service for many

RUN_VARIABLE = Variable("run", "Run", "label_values(rollcall_run_info, run)")
POLICY_VARIABLE = Variable("policy", "Policy", f"label_values(rollcall_run_info{{{RUN}}}, policy)")
VARIABLES = (RUN_VARIABLE, POLICY_VARIABLE)

# Versions come by the thousand: a mark where each twentieth of a run was passed. The others are single moments.
ANNOTATIONS = (
    Annotation(
        "Weight versions",
        f"changes(floor(20 * rollcall_progress_ratio{OF})[1m:15s]) > 0",
        "another twentieth of the run's versions",
        "blue",
        at_value=False,
    ),
    Annotation(
        "Restarts", f"1000 * rollcall_last_restart_timestamp_seconds{{{RUN}}}", "{{role}} was started again", "red"
    ),
    Annotation("Checkpoints", f"1000 * rollcall_last_checkpoint_timestamp_seconds{OF}", "checkpoint", "green"),
    Annotation(
        "Model swaps", f"1000 * rollcall_reward_model_changed_timestamp_seconds{OF}", "another reward model", "purple"
    ),
)


def gauge(name: str, legend: str = "{{run}}") -> Query:
    return Query(f"rollcall_{name}{OF}", legend)


def per_second(name: str, legend: str = "{{run}}") -> Query:
    return Query(f"rate(rollcall_{name}{OF}[$__rate_interval])", legend)


def mean(name: str, legend: str) -> Query:
    """Of a histogram: seconds per event."""
    rates = (f"rate(rollcall_{name}_{part}{OF}[$__rate_interval])" for part in ("sum", "count"))
    return Query(" / ".join(rates), legend)


HEALTH = Row(
    "Is it healthy?",
    (
        stat(
            "State",
            "What the run does now: starting, training, evaluating or ending.",
            "none",
            [Query(f"rollcall_run_state{OF} == 1", "{{outcome}}")],
            names=True,
        ),
        stat(
            "Alerts firing",
            "Of these runs, and of services for all. Named on Cluster and health, each with its page in the runbook.",
            "short",
            [Query(f'count(ALERTS{{alertstate="firing",alertname=~"Rollcall.*",{OR_NONE}}}) or vector(0)', "firing")],
            thresholds=((None, "green"), (1, "red")),
        ),
        stat(
            "Since the last step",
            "Since a learner step ended; compare Seconds of a step. Five minutes and ten steps are an alert.",
            "s",
            [Query(f"time() - rollcall_last_step_timestamp_seconds{OF}", "{{run}}")],
            thresholds=alarm(warn=60, bad=300),
            decimals=0,
        ),
        stat(
            "Lag left",
            "Versions between the largest lag of the newest batch and max_policy_lag. Below zero cannot happen.",
            "short",
            [Query(f"rollcall_policy_lag_bound{OF} - rollcall_policy_lag_max{OF}", "{{run}}")],
            thresholds=((None, "red"), (0, "green")),
        ),
        stat(
            "Skipped steps",
            "Steps in this time range whose loss or gradient was not finite. They were taken back.",
            "short",
            [Query(f'increase(rollcall_learner_steps_total{{outcome="skipped",{RUN}}}[$__range])', "{{run}}")],
            thresholds=alarm(warn=1, bad=3),
            decimals=0,
        ),
        stat(
            "Restarts",
            "Processes started again in this time range, all roles together.",
            "short",
            [Query(f"sum by (run) (increase(rollcall_restarts_total{{{RUN}}}[$__range]))", "{{run}}")],
            thresholds=alarm(warn=1, bad=5),
            decimals=0,
        ),
        stat(
            "Work at risk",
            "Age of the newest checkpoint: what a dead learner would cost.",
            "s",
            [Query(f"time() - rollcall_last_checkpoint_timestamp_seconds{OF}", "{{run}}")],
            thresholds=alarm(warn=1800, bad=3600),
            decimals=0,
        ),
        stat(
            "Time left",
            "By the pace of the last ten minutes.",
            "dtdurations",
            [
                Query(
                    f"(1 - rollcall_progress_ratio{OF}) / (deriv(rollcall_progress_ratio{OF}[10m]) > 0)",
                    "{{run}}",
                )
            ],
        ),
    ),
)
LEARNING = Row(
    "Is it learning?",
    (
        Panel(
            "Score in training",
            "Control: mean return of the last 100 episodes. Scored runs and language: mean reward of the newest batch.",
            "short",
            [gauge("return_mean", "{{run}} return"), gauge("reward_mean", "{{run}} reward")],
            width=12,
        ),
        Panel(
            "Score in evaluation",
            "Control: mean return on seeds that training never saw. Language: share of held-out problems solved.",
            "short",
            [
                gauge("eval_return_mean", "{{run}} return"),
                gauge("eval_exact_match_ratio", "{{run}} solved"),
            ],
            width=12,
        ),
    ),
)
LIMITS = Row(
    "What limits it?",
    (
        share(
            "Who is busy",
            "Share of the time that the learner updates, and that the busiest actor acts. Who is near 1 is the "
            "limiter; where neither is, look at waiting, publishing and scoring.",
            [
                Query(f"run:rollcall_learner_busy:ratio5m{{{RUN}}}", "{{run}} learner"),
                Query(f"run:rollcall_actor_busy:ratio5m{{{RUN}}}", "{{run}} actor"),
                gauge("bound_fraction_ratio", "{{run}} of the bound"),
            ],
        ),
        Panel(
            "Seconds of a step",
            "Where a learner step's time goes, for the learner: waiting for a batch, updating, publishing.",
            "s",
            [
                mean("wait_batch_seconds", "{{run}} waiting"),
                mean("update_seconds", "{{run}} updating"),
                mean("publish_seconds", "{{run}} publishing"),
            ],
            stacked=True,
        ),
        Panel(
            "Where the tickets are",
            "Tickets not yet learnt from. All queued or in training: the learner limits. Nearly all acting: the actors "
            "do. Scoring piles up: the reward service does.",
            "short",
            [
                gauge("tickets_acting", "{{run}} acting"),
                gauge("tickets_scoring", "{{run}} scoring"),
                gauge("tickets_queued", "{{run}} queued"),
                gauge("tickets_training", "{{run}} training"),
            ],
            stacked=True,
        ),
        Panel(
            "Throughput",
            "Environment steps or generated tokens learnt from, per second.",
            "ops",
            [
                per_second("env_steps_total", "{{run}} env steps"),
                Query(
                    f'rate(rollcall_tokens_total{{stage="generated",{RUN}}}[$__rate_interval])',
                    "{{run}} tokens",
                ),
            ],
        ),
        Panel(
            "Policy lag",
            "Versions between who acted and who learns, in the newest batch, and the hard bound. With kept experience "
            "the bound holds for what comes in; replayed: the mean of what was drawn.",
            "short",
            [
                gauge("policy_lag_max", "{{run}} largest"),
                gauge("policy_lag_mean", "{{run}} mean"),
                gauge("policy_lag_bound", "{{run}} bound"),
                gauge("replay_age_versions", "{{run}} replayed"),
            ],
            least=0,
        ),
        Panel(
            "How attempts ended",
            "Per second, from the ledger. Everything but committed and rolled_back is the reason of a drop.",
            "ops",
            [per_second("tickets_total", "{{run}} {{outcome}}")],
        ),
    ),
)
PROGRESS = Row(
    "How far is it?",
    (
        share(
            "Progress",
            "Share of the run that is done.",
            [gauge("progress_ratio")],
            kind="gauge",
            width=6,
        ),
        Panel("Policy version", "Of the newest published weights.", "short", [gauge("policy_version")], width=6),
        Panel(
            "Events",
            "What the run told, by kind, per minute: checkpoints, drops, restarts, warnings.",
            "short",
            [Query(f"60 * rate(rollcall_events_total{OF}[$__rate_interval])", "{{run}} {{outcome}}")],
            width=12,
        ),
    ),
)

OVERVIEW = Dashboard(
    "rollcall-overview",
    "Rollcall / Run overview",
    "Is it healthy, is it learning, what limits it.",
    VARIABLES,
    ANNOTATIONS,
    (HEALTH, LEARNING, LIMITS, PROGRESS),
)
