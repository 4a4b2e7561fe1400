"""The page of language: what of learning from completions is to be seen."""

from __future__ import annotations

from rollcall.deploy.tools.monitoring.dashboard_learning import CLIPPED, GRADIENT, NATS, RATE, TOKENS_PER_S, title
from rollcall.deploy.tools.monitoring.dashboard_overview import ANNOTATIONS, OF, RUN, VARIABLES, gauge, mean, per_second
from rollcall.deploy.tools.monitoring.dashboards import Dashboard, Panel, Query, Row, alarm, share


def _prompts(more: str) -> str:
    return f"sum by (run) (rate(rollcall_engine_prompt_tokens_total{{{more}{RUN}}}[$__rate_interval]))"


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
                Panel(title("reward_mean"), "Mean of the newest batch's completions.", "short", [gauge("reward_mean")]),
                share(
                    title("exact_match"),
                    "Completions of the newest batch that are right, and held-out problems in evaluation.",
                    [
                        gauge("exact_match_ratio", "{{run}} training"),
                        gauge("eval_exact_match_ratio", "{{run}} evaluation"),
                    ],
                ),
                share(
                    title("degenerate_fraction"),
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
                    title("reward_task"),
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
                    title("reward_agreement"),
                    "Of one prompt's completions, if the task tells them apart. 0.5 is a coin; below 0.6 is an alert.",
                    [gauge("reward_agreement_ratio")],
                ),
                share(
                    title("reward_fresh_accuracy"),
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
                    title("ptx_loss"),
                    "PPO-ptx, nats a token. As at the beginning or lower: nothing is forgotten.",
                    "short",
                    [gauge("ptx_loss")],
                ),
                Panel(
                    title("reward_disagreement"),
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
                    title("mismatch"),
                    "Mean distance of the log-probabilities that the engine sampled with from the learner's. At lag 0 "
                    "with one update a batch below 0.0001; else what lag and updates explain. Above 0.25 is an alert.",
                    NATS,
                    [gauge("logprob_mismatch_nats")],
                    thresholds=alarm(warn=0.15, bad=0.25),
                ),
                Panel(
                    title("fresh_mismatch"),
                    "The canary: 64 fixed tokens after each update, and sampled tokens without lag. Rounding alone: "
                    "0.00001 in float32, 0.01 in bfloat16. At the bound the run stops.",
                    NATS,
                    [
                        gauge("engine_canary_nats", "{{run}} canary"),
                        gauge("fresh_mismatch_nats", "{{run}} sampled"),
                        gauge("engine_canary_bound_nats", "{{run}} bound"),
                    ],
                ),
                Panel(
                    title("kl_reference"),
                    "KL estimate to the reference policy, per token: the price of the reward. A run without a penalty "
                    "has none.",
                    NATS,
                    [gauge("kl_reference_nats")],
                ),
                Panel(
                    title("entropy"),
                    "Of the policy, per token. A collapse ends exploration.",
                    NATS,
                    [gauge("entropy_nats")],
                ),
                CLIPPED,
                GRADIENT,
                RATE,
            ),
        ),
        Row(
            "Completions",
            (
                Panel(title("length_mean"), "Mean of the newest batch.", "short", [gauge("completion_length_tokens")]),
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
                    title("tokens_per_s"),
                    "Per second: sampled and learnt from, and trained in updates.",
                    TOKENS_PER_S,
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
                    title("engine_kv_cache_usage"),
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
                Panel(title("engine_steps"), "Per second, of all engines.", "ops", [per_second("engine_steps_total")]),
            ),
        ),
    ),
)
