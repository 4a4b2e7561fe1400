"""Tests of rollcall.cluster.messages."""
