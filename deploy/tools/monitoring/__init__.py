"""Dashboards, alert rules and the local Prometheus: `rollcall monitor`, `make generate`."""
