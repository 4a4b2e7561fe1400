"""Stands in for an agent of a raylet: says that it serves on no port, and ends when the raylet does. A script, started
without site packages: it imports nothing that takes time."""

import os
import sys

PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")


def main() -> None:
    """Beside the raylet: writes what it waits for."""
    given = dict(word.partition("=")[::2] for word in sys.argv[1:])
    for port in PORTS:
        path = os.path.join(given["--session-dir"], f"{port}_{given['--node-id']}")
        own = f"{path}.{os.getpid()}"
        with open(own, "w") as file:
            file.write("-1")  # Ray's word for "serves none"
        os.replace(own, path)
    while os.read(0, 1):  # the raylet's end of this pipe closes with it
        pass


if __name__ == "__main__":
    main()
