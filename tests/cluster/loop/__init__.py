"""Tests of rollcall.cluster.loop."""
