"""Pages of what runs stand on: the reward service, and the machines."""

from __future__ import annotations

from rollcall.deploy.tools.monitoring.dashboard_overview import (
    ANNOTATIONS,
    OR_NONE,
    RUN,
    RUN_VARIABLE,
    VARIABLES,
    gauge,
)
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

_OF = f'{{{OR_NONE},instance=~"$service"}}'
_SERVICE = Variable("service", "Service", "label_values(rollcall_reward_requests_in_flight, instance)")


def _rate(name: str, by: str, *, more: str = "") -> str:
    chosen = _OF if not more else _OF.replace("{", f"{{{more},", 1)
    return f"sum by ({by}) (rate(rollcall_reward_{name}{chosen}[$__rate_interval]))"


def _share(name: str, by: str, part: str) -> str:
    """Of a counter's whole, what one value of a label has."""
    return f"{_rate(name, by, more=part)} / {_rate(name, by)}"


def _latency(quantile: float) -> Query:
    buckets = _rate("request_seconds_bucket", "instance, le", more='route="score"')
    return Query(f"histogram_quantile({quantile}, {buckets})", f"{{{{instance}}}} p{100 * quantile:g}")


REWARD_SERVICE = Dashboard(
    "rollcall-reward-service",
    "Rollcall / Reward service",
    "Scores: how many, how fast, how many fail, from which model.",
    (RUN_VARIABLE, _SERVICE),
    (
        Annotation(
            "Model swaps",
            f"1000 * rollcall_reward_model_loaded_timestamp_seconds{_OF}",
            "{{model}} took its place",
            "purple",
        ),
        *(item for item in ANNOTATIONS if item.name == "Restarts"),
    ),
    (
        Row(
            "Is it healthy?",
            (
                stat(
                    "Up",
                    "1 where the service answers Prometheus.",
                    "short",
                    [Query(f'up{{role="reward_service",{OR_NONE},instance=~"$service"}}', "{{instance}}")],
                    width=4,
                    thresholds=((None, "red"), (1, "green")),
                ),
                stat(
                    "Scores a second",
                    "Items that got one.",
                    "ops",
                    [Query(_rate("items_total", "instance", more='outcome="scored"'), "{{instance}}")],
                    width=4,
                ),
                stat(
                    "Failed items",
                    "Share of the items that got an error and no score. One in twenty is an alert.",
                    "percentunit",
                    [Query("1 - " + _share("items_total", "instance", 'outcome="scored"'), "{{instance}}")],
                    width=4,
                    thresholds=alarm(warn=0.01, bad=0.05),
                ),
                stat(
                    "Under way",
                    "Requests being answered.",
                    "short",
                    [Query(f"rollcall_reward_requests_in_flight{_OF}", "{{instance}}")],
                    width=4,
                ),
                stat(
                    "Models",
                    "What is served, by version.",
                    "none",
                    [Query(f"rollcall_reward_model_info{_OF}", "{{model}} {{version}} ({{kind}})")],
                    width=8,
                    names=True,
                ),
            ),
        ),
        Row(
            "Requests",
            (
                Panel(
                    "Time to an answer",
                    "Of requests for scores, from their head to the answer: the median, the 95th and the 99th of 100.",
                    "s",
                    [_latency(0.5), _latency(0.95), _latency(0.99)],
                    thresholds=alarm(warn=3, bad=10),
                ),
                Panel(
                    "Requests",
                    "Per second, by route and what became of them.",
                    "reqps",
                    [Query(_rate("requests_total", "route, outcome"), "{{route}} {{outcome}}")],
                ),
                Panel(
                    "Items",
                    "Per second, by model and what became of them.",
                    "ops",
                    [Query(_rate("items_total", "model, outcome"), "{{model}} {{outcome}}")],
                ),
            ),
        ),
        Row(
            "What limits it?",
            (
                Panel(
                    "Computing",
                    "Share of the time that a model computes. Near 1 it is the limiter: a smaller model, or a second "
                    "service.",
                    "percentunit",
                    [Query(_rate("compute_seconds_total", "instance, model"), "{{model}}")],
                    least=0,
                ),
                Panel(
                    "Waiting to be scored",
                    "Items in a model's queue. Beyond batching.max_queue_items requests are refused with 429.",
                    "short",
                    [Query(f"rollcall_reward_queue_items{_OF}", "{{model}}")],
                ),
                Panel(
                    "Items of a batch",
                    "Mean. Small ones on a busy model: raise batching.max_wait_ms, or let clients send more at a time.",
                    "short",
                    [
                        Query(
                            f"{_rate('batch_items_sum', 'model')} / {_rate('batch_items_count', 'model')}", "{{model}}"
                        )
                    ],
                ),
                share(
                    "Padding",
                    "Share of the computed tokens that only fill a batch up.",
                    [Query(_share("tokens_total", "model", 'kind="padding"'), "{{model}}")],
                ),
                Panel(
                    "Cache",
                    "Look-ups per second: found, not found, joined to one under way, and errors.",
                    "ops",
                    [Query(_rate("cache_total", "outcome"), "{{outcome}}")],
                ),
                Panel(
                    "Process",
                    "Memory that the service's process holds.",
                    "bytes",
                    [Query(f'process_resident_memory_bytes{{role="reward_service",{OR_NONE}}}', "{{instance}}")],
                ),
            ),
        ),
    ),
)

_HEALTH = Row(
    "Is anything wrong?",
    (
        Panel(
            "Alerts",
            "Pending and firing ones. Each has a page in docs/runbook.md.",
            "none",
            [Query('ALERTS{alertname=~"Rollcall.*"}', "{{alertname}}")],
            kind="table",
            width=12,
        ),
        Panel(
            "Targets",
            "1 where Prometheus gets an answer. A run that ends well takes its target away; 0 is one that died.",
            "short",
            [Query('up{role=~"driver|reward_service"}', "{{role}} {{run}} {{instance}}")],
            width=6,
            least=0,
            most=1,
        ),
        Panel(
            "Restarts",
            "Processes started again in half an hour, by role. Three of a role are an alert.",
            "short",
            [Query(f"sum by (run, role) (increase(rollcall_restarts_total{{{RUN}}}[30m]))", "{{run}} {{role}}")],
            width=6,
            least=0,
            thresholds=alarm(warn=1, bad=3),
        ),
    ),
)
_STANDS_ON = Row(
    "What runs stand on",
    (
        Panel(
            "Redis",
            "Time of a ping. A gap with the next panel at 0: it is down.",
            "s",
            [gauge("redis_ping_seconds")],
            thresholds=alarm(warn=0.01, bad=0.05),
        ),
        Panel("Redis answers", "1: yes.", "short", [gauge("redis_up")], least=0, most=1),
        Panel(
            "Disk",
            "Free where the runs are; in a day, by the last six hours; and three checkpoints: below is an alert.",
            "bytes",
            [
                gauge("disk_free_bytes", "{{run}} free"),
                Query(f"predict_linear(rollcall_disk_free_bytes{{{RUN}}}[6h], 86400)", "{{run}} in a day"),
                Query(f"3 * rollcall_last_checkpoint_bytes{{{RUN}}}", "{{run}} three checkpoints"),
            ],
            least=0,
        ),
        Panel(
            "Checkpoints",
            "Age of the newest.",
            "s",
            [Query(f"time() - rollcall_last_checkpoint_timestamp_seconds{{{RUN}}}", "{{run}}")],
            thresholds=alarm(warn=1800, bad=3600),
        ),
        Panel(
            "Drivers",
            "Memory of the drivers' processes. It should settle.",
            "bytes",
            [Query(f'process_resident_memory_bytes{{role="driver",{OR_NONE}}}', "{{run}}")],
        ),
        Panel(
            "Cost of these metrics",
            "Share of the run's time spent on them, scrapes included. It stays below one in a hundred.",
            "percentunit",
            [Query(f"run:rollcall_metrics_cost:ratio5m{{{RUN}}}", "{{run}}")],
            thresholds=alarm(warn=0.005, bad=0.01),
            decimals=3,
        ),
    ),
)
_RAY = Row(
    "The Ray cluster (one that runs join; a run's own has its metrics off)",
    (
        Panel(
            "CPU",
            "Of each node.",
            "percent",
            [Query("ray_node_cpu_utilization", "{{instance}}")],
            least=0,
            most=100,
        ),
        share(
            "Memory",
            "Share in use, of each node. Beyond 0.95 Ray kills processes.",
            [Query("ray_node_mem_used / ray_node_mem_total", "{{instance}}")],
            thresholds=alarm(warn=0.85, bad=0.95),
        ),
        Panel(
            "Object store",
            "Bytes, by where they lie. What spills to disk is slow.",
            "bytes",
            [Query("sum by (Location) (ray_object_store_memory)", "{{Location}}")],
        ),
        Panel(
            "Resources",
            "Of the cluster, by kind: in use.",
            "short",
            [Query('sum by (Name) (ray_resources{State="USED"})', "{{Name}}")],
        ),
        Panel("Actors", "Of Ray, by state.", "short", [Query("sum by (State) (ray_actors)", "{{State}}")]),
        Panel(
            "GPUs",
            "Mean utilisation of each node's.",
            "percent",
            [Query("avg by (instance) (ray_node_gpus_utilization)", "{{instance}}")],
            least=0,
            most=100,
        ),
    ),
)

CLUSTER_HEALTH = Dashboard(
    "rollcall-cluster-health",
    "Rollcall / Cluster and health",
    "Alerts, targets, Redis, disks, Ray: what runs stand on.",
    VARIABLES,
    ANNOTATIONS,
    (_HEALTH, _STANDS_ON, _RAY),
)
