"""The command lines of `rollcall bench`: kept apart from the benchmarks, which import everything they measure."""

from __future__ import annotations

import argparse
from typing import Any

GYM_PEERS = ("sb3", "sbx", "rejax", "cleanrl", "envpool")
SETTINGS = "settings such as actors.num=4"
WORKLOADS = ("small", "large", "arithmetic")


def add_benches(what: Any) -> None:
    """`what`: the subparsers of `rollcall bench`."""
    _gym(what.add_parser("gym", help="env steps per second of a whole run, its parts and its bound"))
    _lm(what.add_parser("lm", help="tokens per second of a whole language run, its parts and its bound"))
    _weights(what.add_parser("weights", help="from publishing new weights to having applied them, against a copy"))
    _reward(what.add_parser("reward", help="tokens per second of the reward service, against its model alone"))


def _gym(parser: argparse.ArgumentParser) -> None:
    _common(parser, recipe="cartpole-ppo", repeats=5)
    parser.add_argument(
        "--peer",
        action="extend",
        type=_peers,
        default=[],
        metavar="NAME[,NAME]",
        help=f"also measure peers with the same settings, of {', '.join(GYM_PEERS)}",
    )
    parser.add_argument(
        "--learn",
        type=_steps,
        metavar="STEPS",
        help="instead of speeds: train for so many env steps, once per repeat, and tell the last episodes' returns",
    )


def _peers(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in GYM_PEERS:
            raise argparse.ArgumentTypeError(f"invalid choice: {name!r} (choose from {', '.join(GYM_PEERS)})")
    return names


def _steps(text: str) -> int:
    try:
        steps = int(text.replace("_", "").replace(",", ""))
    except ValueError:
        steps = 0
    if steps < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of env steps: write one such as 150_000")
    return steps


def _lm(parser: argparse.ArgumentParser) -> None:
    _common(parser, recipe="arithmetic-grpo", repeats=3)
    parser.add_argument(
        "--workload",
        choices=list(WORKLOADS),
        default="small",
        help="small: 512 completions x 32 tokens, 0.8M parameters; large: 128 x 64, 9.7M; arithmetic: the recipe",
    )
    parser.add_argument("--peer", choices=["trl"], help="also measure a peer with the same model, prompts and batch")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of engine and learner")


def _weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", default="1,10,100", metavar="MB,...", help="models' sizes in megabytes (1,10,100)")
    parser.add_argument(
        "--engine", action="store_true", help="also how long vLLM takes to load models of 1 and 10 MB (starts slowly)"
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="repeats of a few publications (5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _reward(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S", help="of load, in all repeats (60)")
    parser.add_argument("--clients", type=int, default=64, metavar="N", help="that ask at once (64)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of the model, served and alone (1)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="interleaved repeats (3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _common(parser: argparse.ArgumentParser, *, recipe: str, repeats: int) -> None:
    parser.add_argument("recipe", nargs="?", default=recipe, metavar="RECIPE")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=SETTINGS)
    parser.add_argument(
        "--repeats", type=int, default=repeats, metavar="N", help=f"interleaved repeats; the median counts ({repeats})"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
