"""`rollcall reward label`: the labelling page as a service, preferences in and out, agreement, synthetic raters."""

from __future__ import annotations

import argparse
import json
import logging
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import yaml
from pydantic import ValidationError

from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.import_path import import_object
from rollcall.deploy.config.settings import COMMAND_LINE
from rollcall.deploy.drive.judge_engines import served
from rollcall.reward_service.labelling.client import LabelClient
from rollcall.reward_service.labelling.leases import LabelQueue
from rollcall.reward_service.labelling.redis_queue import LabellingConfig
from rollcall.reward_service.labelling.routes import OPEN_PATHS, PAGE_PATH, router
from rollcall.reward_service.labelling.store import open_labelling
from rollcall.reward_service.preferences.agreement import Agreement, agreement
from rollcall.reward_service.preferences.files import Preference, read_preferences, write_preferences
from rollcall.reward_service.preferences.log import PreferenceLog
from rollcall.reward_service.preferences.records import Comparison, Label, comparison_of, preference_of
from rollcall.reward_service.raters.rater import JudgeRater, Rater, label_all
from rollcall.reward_service.raters.synthetic_rater import SyntheticRater
from rollcall.reward_service.raters.synthetic_rater_config import SyntheticRaterConfig
from rollcall.reward_service.scorers.judge import Judge
from rollcall.reward_service.scorers.judge_config import JudgeConfig
from rollcall.reward_service.service.auth import find_token
from rollcall.reward_service.service.server import Server, leave_at_once_unless
from rollcall.reward_service.service.service_config import ServiceConfig

IMPORTED = "imported"  # the rater of a line that names none


def serve(args: argparse.Namespace) -> int:
    """Serves the page until SIGTERM or Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = {"host": args.host, "port": args.port, "token_file": args.token_file}
    try:
        config = ServiceConfig.model_validate({name: value for name, value in settings.items() if value is not None})
    except ValidationError as error:
        raise _bad(error) from None
    token = find_token(config.token_file)
    with open_labelling(args.directory, _labelling_config(args)) as store:
        server = Server(config, token=token, routers=[router(store)], open_paths=OPEN_PATHS)
        print(f"{server.url}{PAGE_PATH}", flush=True)
        if token is not None:
            print(f"the page asks for the token once; or open it as {PAGE_PATH}#token=...", file=sys.stderr)
        ended = server.run()
    leave_at_once_unless(ended)
    return 0


def export(args: argparse.Namespace) -> int:
    """Writes every label that stands; of a directory that is being served as well."""
    found = [(comparison, label) for comparison, label in _files(args.directory).standing()]
    preferences = [preference_of(comparison, label) for comparison, label in found]
    decided = [preference for preference in preferences if preference is not None]
    if not decided:
        raise BadInput(f"{args.directory}: no label to export yet")
    write_preferences(args.file, decided)
    skipped = len(found) - len(decided)
    print(f"{args.file}: {len(decided)} preferences" + (f"; {skipped} skips are left out" if skipped else ""))
    return 0


def import_(args: argparse.Namespace) -> int:
    """Reads the whole file, or nothing of it."""
    preferences = read_preferences(args.file)
    given = [_labelled(preference, number) for number, preference in enumerate(preferences)]
    if _is_url(args.target):
        if not args.unlabelled:
            raise BadInput(f"{args.target}: a service takes comparisons to label, not labels: give --unlabelled")
        with _client(args) as client:
            new = client.add(comparison for comparison, _ in given)
        print(f"{args.target}: {new} comparisons to label, {len(given) - new} were there before")
        return 0
    with open_labelling(Path(args.target)) as store:
        if args.unlabelled:
            new = store.add(comparison for comparison, _ in given)
            print(f"{args.target}: {new} comparisons to label, {len(given) - new} were there before")
        else:
            new = store.put(given)
            print(f"{args.target}: {new} labels, {len(given) - new} were there before")
    return 0


def show_agreement(args: argparse.Namespace) -> int:
    found = agreement([label for _, label in _files(args.directory).standing()])
    if args.json:
        print(json.dumps(asdict(found)))
    else:
        print("\n".join(_agreement_lines(found)))
    return 0


def synth(args: argparse.Namespace) -> int:
    """Labels with a known reward until nothing waits, or for as long as it is told to."""
    true_reward = import_object(args.true_reward)
    if not callable(true_reward):
        raise BadInput(f"--true-reward = {args.true_reward!r} ({COMMAND_LINE}): no function")
    given = {name: getattr(args, name) for name in SyntheticRaterConfig.model_fields}
    try:
        config = SyntheticRaterConfig.model_validate({n: v for n, v in given.items() if v is not None})
    except ValidationError as error:
        raise _bad(error) from None
    return _label_target(
        SyntheticRater(args.rater, true_reward, config), args, blame=f"--true-reward = {args.true_reward!r}"
    )


def judge(args: argparse.Namespace) -> int:
    """Labels with a language model's verdicts."""
    try:
        config = JudgeConfig.model_validate(yaml.safe_load(args.judge.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise BadInput(f"--judge = {str(args.judge)!r} ({COMMAND_LINE}): {' '.join(str(error).split())}") from None
    except ValidationError as error:
        raise _bad(error) from None
    with served(config, Path.cwd()) as config, closing(Judge(config)) as judge:
        rater = JudgeRater(args.rater, judge, tie_margin=args.tie_margin, soft=config.soft)
        try:
            return _label_target(rater, args, blame=f"--judge = {str(args.judge)!r}")
        finally:
            print(rater.bias.line())


def _label_target(rater: Rater, args: argparse.Namespace, *, blame: str) -> int:
    try:
        if _is_url(args.target):
            with _client(args) as client:
                taken = _label(rater, client, args)
        else:
            with open_labelling(Path(args.target)) as store:
                taken = _label(rater, store, args)
    except ValueError as error:
        raise BadInput(f"{blame} ({COMMAND_LINE}): {error}") from None
    print(f"{args.target}: {taken} labels by {args.rater}")
    return 0


def _label(rater: Rater, queue: LabelQueue, args: argparse.Namespace) -> int:
    """Until nothing was waiting for `wait_s`: comparisons may still be made."""
    taken, idle_since = 0, time.monotonic()
    while args.limit is None or taken < args.limit:
        new = label_all(rater, queue, limit=None if args.limit is None else args.limit - taken)
        taken += new
        if new:
            idle_since = time.monotonic()
        elif time.monotonic() - idle_since >= args.wait_s:
            break
        else:
            time.sleep(min(0.5, args.wait_s))
    return taken


def _labelled(preference: Preference, number: int) -> tuple[Comparison, Label]:
    try:
        comparison, places = comparison_of(preference)
        details = preference.details
        duration_s, at = details.get("duration_s"), details.get("labelled_at")
        pair = len(places) == 2
        label = Label(
            comparison_id=comparison.id,
            rater=preference.rater or IMPORTED,
            choice=("tie" if places[0] == places[1] else "left" if places[0] < places[1] else "right")
            if pair
            else None,
            ranks=None if pair else places,
            margin=getattr(preference, "margin", None),
            shown=(),
            created_at=datetime.fromisoformat(at) if isinstance(at, str) else datetime.now(UTC),
            duration_s=duration_s if isinstance(duration_s, int | float) else 0.0,
            probability=getattr(preference, "probability", None),
            token=f"import-{number}-{secrets.token_hex(8)}",
        )
        return comparison, label
    except ValueError as error:
        said = str(_bad(error)) if isinstance(error, ValidationError) else str(error)
        raise BadInput(f"{preference.source}: {said}; fix the line: nothing of the file was loaded") from None


def _files(directory: Path) -> PreferenceLog:
    found = PreferenceLog(directory / "preferences")
    if not found.directory.is_dir():
        raise BadInput(f"{directory}: no labelling directory (it has no preferences/): serve or import into it first")
    return found


def _agreement_lines(found: Agreement) -> Iterator[str]:
    yield f"labels                 {found.num_labels} by {found.num_raters} raters"
    yield f"shared pairs           {found.num_shared}"
    yield f"raw agreement          {_number(found.agreement)}"
    yield f"Krippendorff's alpha   {_number(found.alpha)}"
    for kappa in found.kappas:
        between = f"{' and '.join(kappa.raters)}: {kappa.num_units} shared, {kappa.agreement:.3f} agree"
        yield f"Cohen's kappa          {_number(kappa.kappa)}  {between}"
    yield f"first place chosen     {_number(found.first_chosen)}  (0.5: the place on the screen decides nothing)"
    yield f"ties                   {_number(found.ties)}"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _labelling_config(args: argparse.Namespace) -> LabellingConfig:
    given = {name: getattr(args, name) for name in LabellingConfig.model_fields}
    try:
        return LabellingConfig.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise _bad(error) from None


def _client(args: argparse.Namespace) -> LabelClient:
    return LabelClient(args.target, find_token(args.token_file))


def _is_url(target: str) -> bool:
    return target.startswith(("http://", "https://"))


def _bad(error: ValidationError) -> BadInput:
    first = error.errors(include_url=False)[0]
    where = "--" + "-".join(str(part) for part in first["loc"]).replace("_", "-") if first["loc"] else "the options"
    return BadInput(
        f"{where} ({COMMAND_LINE}): {first['msg'].removeprefix('Value error, ')}, and {first['input']!r} is given"
    )
