"""Tests of rollcall.deploy.kinds.tabular."""
