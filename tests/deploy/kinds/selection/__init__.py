"""Tests of rollcall.deploy.kinds.selection."""
