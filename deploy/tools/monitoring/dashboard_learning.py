"""What of learning is to be seen in control and in language alike."""

from __future__ import annotations

from rollcall.cluster.metrics.names import name_of
from rollcall.deploy.tools.monitoring.dashboard_overview import gauge
from rollcall.deploy.tools.monitoring.dashboards import Panel, alarm

NATS, TOKENS_PER_S, STEPS_PER_S = "suffix: nats", "suffix: tok/s", "suffix: steps/s"  # Grafana's way to write a unit


def title(key: str) -> str:
    return name_of(key).title


CLIPPED = Panel(
    title("clip_fraction"),
    "Where the ratio of learning to acting policy was cut. Above a third the steps are too large, or the lag is.",
    "percentunit",
    [gauge("clip_fraction_ratio")],
    least=0,
    thresholds=alarm(warn=0.3, bad=0.6),
)
GRADIENT = Panel(
    title("grad_norm"),
    "Before clipping. Spikes are outliers in a batch; a steady climb is a learning rate too high.",
    "short",
    [gauge("grad_norm")],
)
RATE = Panel(title("learning_rate"), "Of the newest step.", "sci", [gauge("learning_rate")])
KL = Panel(
    "KL from acting to learning policy",
    "KL divergence that one batch's updates make: the estimate, and the exact one where the algorithm has it. Jumps "
    "come before collapses.",
    NATS,
    [gauge("approx_kl_nats", "{{run}} estimate"), gauge("kl_old_nats", "{{run}} exact")],
)
