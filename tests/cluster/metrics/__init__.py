"""Tests of rollcall.cluster.metrics."""
