"""Tests of rollcall.deploy."""
