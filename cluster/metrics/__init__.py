"""The metrics of a run: what there is, who feeds it, and where Prometheus finds it."""
