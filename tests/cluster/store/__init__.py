"""Tests of rollcall.cluster.store."""
