"""Tests of rollcall.cluster.books."""
