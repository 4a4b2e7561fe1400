"""The service as a process: HTTP, tokens, limits, draining."""
