"""Tests of rollcall.deploy.kinds.preferences."""
