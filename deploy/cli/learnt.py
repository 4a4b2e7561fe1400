"""`rollcall eval`, `export`, `report`, `audit` and `prune`: what is asked of a run that was made."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rollcall.cluster.errors import BadInput
from rollcall.deploy.cli.commands import DONE, FAILED, Add, at_least
from rollcall.deploy.config.settings import read_recipe


def add_learnt(add: Add) -> None:
    """Adds the commands that look at runs."""
    evaluate = add("eval", _eval, "evaluate a run's last checkpoint, or a given one, on fixed seeds or held-out rows")
    evaluate.add_argument("target", metavar="RUN_OR_CHECKPOINT")
    evaluate.add_argument(
        "--episodes",
        type=int,
        metavar="N",
        help="episodes, or held-out rows; default: the recipe's eval.episodes or eval.num_rows",
    )
    evaluate.add_argument("--seed", type=int, metavar="S", help="default: the run's own evaluation seeds")
    evaluate.add_argument("--video", type=Path, metavar="FILE", help="also film one episode, as a .gif (control)")
    record = (
        "also write the episodes down, to imitate: a .safetensors file, or minari:ID for a Minari data set (control)"
    )
    evaluate.add_argument("--record", metavar="FILE", help=record)
    evaluate.add_argument("--stochastic", action="store_true", help="sample actions or tokens, not the likeliest")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")
    _add_export(add)
    report = add("report", _report, "write report.html, a self-contained page of curves")
    report.add_argument("directory", metavar="RUN")
    report.add_argument(
        "--beside",
        metavar="RUN",
        action="append",
        default=[],
        help="another run in the same charts; may be given again",
    )
    audit = add("audit", _audit, "check that the books balance: every rollout exactly once, every checkpoint whole")
    audit.add_argument("directory", metavar="RUN")
    audit.add_argument("--json", action="store_true", help="print one JSON object")
    audit.add_argument("-q", "--quiet", action="store_true", help="print discrepancies alone")
    prune = add("prune", _prune, "remove of a run that stands still what neither a resume nor an audit needs")
    prune.add_argument("directory", metavar="RUN")
    prune.add_argument(
        "--newest-only",
        action="store_true",
        help="also all checkpoints but the newest: a resume can go back to that one alone",
    )
    prune.epilog = (
        "seals what every kept checkpoint covers: these tickets leave Redis for compressed segments in RUN/books, "
        "which audits read; folds the consumption log into segments; has a private Redis rewrite its log; removes what "
        "killed processes left half written. Weights, metrics, logs and reports stay. A run that goes on is refused"
    )


def _add_export(add: Add) -> None:
    about = "write a policy for other programs: a language model for transformers and vLLM, a control policy as ONNX"
    export = add("export", _export, about)
    export.add_argument("target", metavar="RUN_OR_CHECKPOINT")
    export.add_argument(
        "goal",
        nargs="?",
        type=Path,
        metavar="DIRECTORY_OR_FILE",
        help="default: RUN/policy, or RUN/policy.onnx of a control run",
    )
    export.add_argument("--onnx", type=Path, metavar="FILE", help="a control policy, checked against the policy itself")
    export.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="of a language model's weights; default: float32, as they are trained",
    )
    export.add_argument(
        "--adapters", action="store_true", help="only the LoRA adapters, for peft and vLLM; default: RUN/adapters"
    )
    export.add_argument(
        "--push", metavar="OWNER/NAME", help="also upload the directory to the Hugging Face hub, private if it is new"
    )
    export.add_argument("--public", action="store_true", help="with --push: a new repository is for all to see")


def _eval(args: argparse.Namespace) -> int:
    from rollcall.deploy.kinds.kind import EvalOptions
    from rollcall.deploy.kinds.loading import evaluate

    at_least("--episodes", args.episodes, 1)
    at_least("--seed", args.seed, 0)
    options = EvalOptions(
        episodes=args.episodes, seed=args.seed, stochastic=args.stochastic, video=args.video, record=args.record
    )
    kind, result = evaluate(args.target, options)
    if args.json:
        print(json.dumps(result))
        return DONE
    print(kind.eval_line(result))
    if args.video is not None:
        print(f"video: {result['video']}")
    if args.record is not None:
        print(f"recorded: {result['recorded']}, {result['recorded_steps']:,} steps of {result['n']:,} episodes")
    return DONE


def _export(args: argparse.Namespace) -> int:
    from rollcall.deploy.kinds.exporting import ExportOptions
    from rollcall.deploy.kinds.loading import export_run

    more = {name: getattr(args, name) for name in ("dtype", "adapters", "push", "public")}
    exported = export_run(args.target, ExportOptions.of(args.goal, args.onnx, **more))
    print(exported.path)
    for line in exported.told:
        print(line)
    return DONE


def _report(args: argparse.Namespace) -> int:
    from rollcall.deploy.report.page import write_report
    from rollcall.deploy.rundir.directories import find_run

    beside = [find_run(run) for run in args.beside]
    print(write_report(find_run(args.directory), beside=beside))
    return DONE


def _refuse_without_rollouts(directory: Path) -> None:
    """Whether it is a run on data. Those who know kinds import torch: seconds, that most audits do without."""
    from rollcall.deploy.kinds.registry import kind_of

    data = kind_of(read_recipe(directory / "config.yaml").tree).data
    if data:
        raise BadInput(f"{directory}: a run on {data}: it has no actors, so there are no books to audit")


def _audit(args: argparse.Namespace) -> int:
    from rollcall.cluster.books.audit import audit_run
    from rollcall.cluster.books.consumption import LOG_NAME
    from rollcall.cluster.books.settings_history import booked_spans
    from rollcall.cluster.checkpoint import damaged_files
    from rollcall.deploy.rundir.directories import find_run

    directory = find_run(args.directory)
    if not (directory / "logs" / LOG_NAME).exists():
        _refuse_without_rollouts(directory)
    discrepancies = [*map(str, audit_run(directory)), *damaged_files(directory)]
    segments = list(map(str, booked_spans(directory)[1:]))
    if args.json:
        found = {"run": str(directory), "balanced": not discrepancies, "discrepancies": discrepancies}
        print(json.dumps({**found, "segments": segments}))
        return FAILED if discrepancies else DONE
    for discrepancy in discrepancies:
        print(discrepancy)
    if not discrepancies and not args.quiet:
        print(f"{directory}: the books balance")
        for segment in segments:
            print(f"segment {segment}")
    return FAILED if discrepancies else DONE


def _prune(args: argparse.Namespace) -> int:
    from rollcall.deploy.kinds.registry import kind_of
    from rollcall.deploy.rundir.directories import find_run
    from rollcall.deploy.rundir.pruning import prune_run

    directory = find_run(args.directory)
    data = kind_of(read_recipe(directory / "config.yaml").tree).data
    if data:
        raise BadInput(f"{directory}: a run on {data}: it has no actors, so there are no books to prune")
    for line in prune_run(directory, newest_only=args.newest_only):
        print(line)
    return DONE
