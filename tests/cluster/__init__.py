"""Tests of rollcall.cluster."""
