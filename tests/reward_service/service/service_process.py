"""A service as a process of its own, for tests that send it signals: `python -m
tests.reward_service.service.service_process PORT DIRECTORY DELAY_S`.
Prints its URL. Models are loaded from below the directory; the one it begins with has offset 0."""

from __future__ import annotations

import sys

from rollcall.reward_service.service.server import Server
from rollcall.reward_service.service.service_config import ServiceConfig
from tests.reward_service.live_service import Scorers, ScriptedScorer


def main(port: str, directory: str, delay_s: str) -> None:
    models = {"main": {"kind": "reward_model", "path": "/nowhere"}}
    config = ServiceConfig.model_validate(
        {
            **{"port": int(port), "models": models, "model_roots": [directory], "drain_timeout_s": 10},
            "batching": {"max_batch_items": 1},
        }
    )
    scorers = Scorers(main=ScriptedScorer(delay_s=float(delay_s)))
    server = Server(config, makers=scorers.makers)
    print(server.url, flush=True)
    assert server.run()
    assert all(scorer.closed.is_set() for scorer in scorers.built)
    print("closed", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
