"""A page for each half: what of learning is to be seen in control, and in language."""

from __future__ import annotations

from rollcall.cluster.metrics.names import name_of
from rollcall.deploy.tools.monitoring.dashboard_overview import ANNOTATIONS, OF, RUN, VARIABLES, gauge, mean, per_second
from rollcall.deploy.tools.monitoring.dashboards import Dashboard, Panel, Query, Row, alarm, share

_NATS, _TOKENS_PER_S, _STEPS_PER_S = "suffix: nats", "suffix: tok/s", "suffix: steps/s"  # Grafana's way to write a unit


def _title(key: str) -> str:
    return name_of(key).title


_CLIPPED = Panel(
    _title("clip_fraction"),
    "Where the ratio of learning to acting policy was cut. Above a third the steps are too large, or the lag is.",
    "percentunit",
    [gauge("clip_fraction_ratio")],
    least=0,
    thresholds=alarm(warn=0.3, bad=0.6),
)
_GRADIENT = Panel(
    _title("grad_norm"),
    "Before clipping. Spikes are outliers in a batch; a steady climb is a learning rate too high.",
    "short",
    [gauge("grad_norm")],
)
_RATE = Panel(_title("learning_rate"), "Of the newest step.", "sci", [gauge("learning_rate")])
_KL = Panel(
    "KL from acting to learning policy",
    "KL divergence that one batch's updates make: the estimate, and the exact one where the algorithm has it. Jumps "
    "come before collapses.",
    _NATS,
    [gauge("approx_kl_nats", "{{run}} estimate"), gauge("kl_old_nats", "{{run}} exact")],
)


def _prompts(more: str) -> str:
    return f"sum by (run) (rate(rollcall_engine_prompt_tokens_total{{{more}{RUN}}}[$__rate_interval]))"


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
                    _title("return_mean"),
                    "Undiscounted: mean of the last 100 training episodes, and of the newest evaluation.",
                    "short",
                    [gauge("return_mean", "{{run}} training"), gauge("eval_return_mean", "{{run}} evaluation")],
                    width=12,
                ),
                Panel(
                    _title("reward_mean"),
                    "Mean per step of the newest batch, where a reward service scores. It may rise while the return "
                    "does not: then the policy has found out what the reward model does not know.",
                    "short",
                    [gauge("reward_mean")],
                    width=6,
                ),
                Panel(
                    _title("episodes"),
                    "Ended, per second.",
                    "ops",
                    [per_second("episodes_total")],
                    width=6,
                ),
                Panel(
                    _title("episode_length_mean"),
                    "Mean of the last 100, in env steps.",
                    "short",
                    [gauge("episode_length_mean")],
                ),
                Panel(
                    _title("intrinsic_reward"),
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
                    _title("entropy"),
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
                    _title("explained_variance"),
                    "What the critic knew of a batch's returns before it learnt from them: 1 is all, 0 no more than "
                    "their mean. Below 0 for long: the critic does harm.",
                    "short",
                    [gauge("explained_variance_ratio")],
                ),
                _GRADIENT,
                _KL,
                Panel(
                    _title("kl_coef"), "Its weight, where there is one; adaptive.", "short", [gauge("kl_penalty_coef")]
                ),
                _CLIPPED,
                _RATE,
                Panel(
                    _title("q_mean"),
                    "Of kept actions, and how far off they are. Far above any return, they are overestimated.",
                    "short",
                    [gauge("action_value", "{{run}} value"), gauge("td_error", "{{run}} |TD error|")],
                ),
                Panel(
                    _title("replay_age_env_steps"),
                    "Env steps that came in since the transitions of the newest step were acted, in the mean. At most "
                    "what the buffer holds.",
                    "short",
                    [gauge("replay_age_env_steps"), gauge("replay_transitions", "{{run}} kept")],
                ),
                Panel(_title("replay_bytes"), "What it keeps, priorities included.", "bytes", [gauge("replay_bytes")]),
                Panel(
                    _title("priority_evenness"),
                    "1: all kept transitions are drawn alike; near 0: a few are drawn again and again.",
                    "percentunit",
                    [gauge("priority_evenness_ratio")],
                ),
            ),
        ),
        Row(
            "Speed",
            (
                Panel(_title("steps_per_s"), "Learnt from, per second.", _STEPS_PER_S, [per_second("env_steps_total")]),
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
                    _title("env_restarts"),
                    "After they raised, in five minutes. The driver's log has the tracebacks.",
                    "short",
                    [Query(f"increase(rollcall_env_restarts_total{OF}[5m])", "{{run}}")],
                    thresholds=alarm(warn=1, bad=10),
                ),
            ),
        ),
    ),
)

LANGUAGE = Dashboard(
    "rollcall-language",
    "Rollcall / Language",
    "Learning from completions: rewards, the two log-probabilities, the engines.",
    VARIABLES,
    ANNOTATIONS,
    (
        Row(
            "Rewards",
            (
                Panel(
                    _title("reward_mean"), "Mean of the newest batch's completions.", "short", [gauge("reward_mean")]
                ),
                share(
                    _title("exact_match"),
                    "Completions of the newest batch that are right, and held-out problems in evaluation.",
                    [
                        gauge("exact_match_ratio", "{{run}} training"),
                        gauge("eval_exact_match_ratio", "{{run}} evaluation"),
                    ],
                ),
                share(
                    _title("degenerate_fraction"),
                    "Prompts whose samples all have one reward: too easy, or too hard. Near 1 nothing is learnt.",
                    [gauge("degenerate_ratio")],
                    thresholds=alarm(warn=0.7, bad=0.95),
                ),
            ),
        ),
        Row(
            "Is the reward gamed?",
            (
                Panel(
                    "Reward and the task's own, since the first steps",
                    "Gains in standard deviations of the first five steps, smoothed. A reward that rises while the "
                    "task's own, which nobody learns from, does not is being gamed.",
                    "short",
                    [
                        gauge("reward_gain_deviations", "{{run}} reward"),
                        gauge("task_reward_gain_deviations", "{{run}} task's own"),
                    ],
                ),
                Panel(
                    _title("reward_task"),
                    "Of the newest batch, and of evaluations by it. Nobody learns from it.",
                    "short",
                    [gauge("task_reward_mean", "{{run}} training"), gauge("eval_reward_mean", "{{run}} evaluation")],
                ),
                share(
                    "Lost of the task's own",
                    "Below its best, beyond three standard errors. Above 0.05 is an alert.",
                    [
                        gauge("task_reward_lost_ratio", "{{run}} training"),
                        gauge("eval_lost_ratio", "{{run}} evaluation"),
                    ],
                    thresholds=alarm(warn=0.01, bad=0.05),
                ),
                share(
                    _title("reward_agreement"),
                    "Of one prompt's completions, if the task tells them apart. 0.5 is a coin; below 0.6 is an alert.",
                    [gauge("reward_agreement_ratio")],
                ),
                share(
                    _title("reward_fresh_accuracy"),
                    "Raters' labels of what the policy writes now, before they are learnt from. 0.5 is a coin.",
                    [
                        gauge("reward_fresh_accuracy_ratio"),
                        gauge("reward_fresh_accuracy_low_ratio", "{{run}} at the least"),
                    ],
                ),
                share(
                    "Repeats",
                    "4-grams that a completion had before, and completions that are as another of their batch.",
                    [
                        gauge("repeated_ngram_ratio", "{{run}} within a completion"),
                        gauge("identical_ratio", "{{run}} among completions"),
                    ],
                ),
                Panel(
                    _title("ptx_loss"),
                    "PPO-ptx, nats a token. As at the beginning or lower: nothing is forgotten.",
                    "short",
                    [gauge("ptx_loss")],
                ),
                Panel(
                    _title("reward_disagreement"),
                    "Mean of the newest batch. Twice that of the first steps is an alert.",
                    "short",
                    [gauge("reward_disagreement")],
                ),
            ),
        ),
        Row(
            "Policy",
            (
                Panel(
                    _title("mismatch"),
                    "Mean distance of the log-probabilities that the engine sampled with from the learner's. At lag 0 "
                    "with one update a batch below 0.0001; else what lag and updates explain. Above 0.25 is an alert.",
                    _NATS,
                    [gauge("logprob_mismatch_nats")],
                    thresholds=alarm(warn=0.15, bad=0.25),
                ),
                Panel(
                    _title("fresh_mismatch"),
                    "The canary: 64 fixed tokens after each update, and sampled tokens without lag. Rounding alone: "
                    "0.00001 in float32, 0.01 in bfloat16. At the bound the run stops.",
                    _NATS,
                    [
                        gauge("engine_canary_nats", "{{run}} canary"),
                        gauge("fresh_mismatch_nats", "{{run}} sampled"),
                        gauge("engine_canary_bound_nats", "{{run}} bound"),
                    ],
                ),
                Panel(
                    _title("kl_reference"),
                    "KL estimate to the reference policy, per token: the price of the reward. A run without a penalty "
                    "has none.",
                    _NATS,
                    [gauge("kl_reference_nats")],
                ),
                Panel(
                    _title("entropy"),
                    "Of the policy, per token. A collapse ends exploration.",
                    _NATS,
                    [gauge("entropy_nats")],
                ),
                _CLIPPED,
                _GRADIENT,
                _RATE,
            ),
        ),
        Row(
            "Completions",
            (
                Panel(_title("length_mean"), "Mean of the newest batch.", "short", [gauge("completion_length_tokens")]),
                share(
                    "Truncated and unparsed completions",
                    "Cut for length, and without an answer that can be read. Rising lengths that end here are a policy "
                    "that talks on.",
                    [gauge("truncated_ratio", "{{run}} cut"), gauge("unparsed_ratio", "{{run}} no answer")],
                ),
                Panel(
                    "Prompts given up",
                    "Per minute, by what their samples came to.",
                    "short",
                    [Query(f"60 * rate(rollcall_prompts_dropped_total{OF}[$__rate_interval])", "{{run}} {{outcome}}")],
                ),
            ),
        ),
        Row(
            "Engines",
            (
                Panel(
                    _title("tokens_per_s"),
                    "Per second: sampled and learnt from, and trained in updates.",
                    _TOKENS_PER_S,
                    [per_second("tokens_total", "{{run}} {{stage}}")],
                ),
                Panel(
                    "Requests in the engines",
                    "At an engine step, mean of a batch. Waiting ones have no room: raise "
                    "actors.engine.max_num_seqs, or give the engine more memory.",
                    "short",
                    [
                        gauge("engine_running_requests", "{{run}} running"),
                        gauge("engine_waiting_requests", "{{run}} waiting"),
                    ],
                ),
                share(
                    _title("engine_kv_cache_usage"),
                    "Largest share of an engine's blocks in use. At 1 it takes requests back and begins them anew.",
                    [gauge("engine_kv_cache_usage_ratio")],
                    thresholds=alarm(warn=0.9, bad=0.99),
                ),
                share(
                    "Prefix cache hits, of all prompt tokens",
                    "Share of the prompts' tokens found there. A prompt's samples share it; new weights empty it.",
                    [Query(_prompts('outcome="hit",') + " / " + _prompts(""), "{{run}}")],
                ),
                Panel(
                    "Publishing and weight loading time",
                    "Seconds per learner step: publishing them, and loading them into the engines.",
                    "s",
                    [mean("publish_seconds", "{{run}} publishing"), mean("weights_apply_seconds", "{{run}} loading")],
                ),
                Panel(_title("engine_steps"), "Per second, of all engines.", "ops", [per_second("engine_steps_total")]),
            ),
        ),
    ),
)
