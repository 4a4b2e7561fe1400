"""The page of control: what of learning from environments is to be seen."""

from __future__ import annotations

from rollcall.deploy.tools.monitoring.dashboard_learning import CLIPPED, GRADIENT, KL, RATE, STEPS_PER_S, title
from rollcall.deploy.tools.monitoring.dashboard_overview import ANNOTATIONS, OF, VARIABLES, gauge, mean, per_second
from rollcall.deploy.tools.monitoring.dashboards import Dashboard, Panel, Query, Row, alarm

CONTROL = Dashboard(
    "rollcall-control",
    "Rollcall / Control",
    "Learning from environments: returns, losses, the speed of acting and learning.",
    VARIABLES,
    ANNOTATIONS,
    (
        Row(
            "Returns",
            (
                Panel(
                    title("return_mean"),
                    "Undiscounted: mean of the last 100 training episodes, and of the newest evaluation.",
                    "short",
                    [gauge("return_mean", "{{run}} training"), gauge("eval_return_mean", "{{run}} evaluation")],
                    width=12,
                ),
                Panel(
                    title("reward_mean"),
                    "Mean per step of the newest batch, where a reward service scores. It may rise while the return "
                    "does not: then the policy has found out what the reward model does not know.",
                    "short",
                    [gauge("reward_mean")],
                    width=6,
                ),
                Panel(
                    title("episodes"),
                    "Ended, per second.",
                    "ops",
                    [per_second("episodes_total")],
                    width=6,
                ),
                Panel(
                    title("episode_length_mean"),
                    "Mean of the last 100, in env steps.",
                    "short",
                    [gauge("episode_length_mean")],
                ),
                Panel(
                    title("intrinsic_reward"),
                    "Mean per step of the newest batch, where novelty pays (rnd). It falls as the env becomes known.",
                    "short",
                    [gauge("intrinsic_reward_mean")],
                ),
            ),
        ),
        Row(
            "Updates",
            (
                Panel(
                    title("entropy"),
                    "Of the policy, per step. Near zero too soon: it explores no more. Temperature: its price.",
                    "short",
                    [gauge("entropy_nats"), gauge("temperature", "{{run}} temperature")],
                ),
                Panel(
                    "Losses",
                    "The whole loss and the critic's part.",
                    "short",
                    [gauge("loss", "{{run}} loss"), gauge("value_loss", "{{run}} critic")],
                ),
                Panel(
                    title("explained_variance"),
                    "What the critic knew of a batch's returns before it learnt from them: 1 is all, 0 no more than "
                    "their mean. Below 0 for long: the critic does harm.",
                    "short",
                    [gauge("explained_variance_ratio")],
                ),
                GRADIENT,
                KL,
                Panel(
                    title("kl_coef"), "Its weight, where there is one; adaptive.", "short", [gauge("kl_penalty_coef")]
                ),
                CLIPPED,
                RATE,
                Panel(
                    title("q_mean"),
                    "Of kept actions, and how far off they are. Far above any return, they are overestimated.",
                    "short",
                    [gauge("action_value", "{{run}} value"), gauge("td_error", "{{run}} |TD error|")],
                ),
                Panel(
                    title("replay_age_env_steps"),
                    "Env steps that came in since the transitions of the newest step were acted, in the mean. At most "
                    "what the buffer holds.",
                    "short",
                    [gauge("replay_age_env_steps"), gauge("replay_transitions", "{{run}} kept")],
                ),
                Panel(title("replay_bytes"), "What it keeps, priorities included.", "bytes", [gauge("replay_bytes")]),
                Panel(
                    title("priority_evenness"),
                    "1: all kept transitions are drawn alike; near 0: a few are drawn again and again.",
                    "percentunit",
                    [gauge("priority_evenness_ratio")],
                ),
            ),
        ),
        Row(
            "Speed",
            (
                Panel(title("steps_per_s"), "Learnt from, per second.", STEPS_PER_S, [per_second("env_steps_total")]),
                Panel(
                    "Seconds of a step",
                    "Whole learner steps; of these updating, publishing and scoring; and the busiest actor's work.",
                    "s",
                    [
                        mean("step_seconds", "{{run}} step"),
                        mean("update_seconds", "{{run}} update"),
                        mean("act_seconds", "{{run}} acting"),
                        mean("score_seconds", "{{run}} scoring"),
                        mean("publish_seconds", "{{run}} publishing"),
                    ],
                ),
                Panel(
                    title("env_restarts"),
                    "After they raised, in five minutes. The driver's log has the tracebacks.",
                    "short",
                    [Query(f"increase(rollcall_env_restarts_total{OF}[5m])", "{{run}}")],
                    thresholds=alarm(warn=1, bad=10),
                ),
            ),
        ),
    ),
)
