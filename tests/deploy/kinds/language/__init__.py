"""Tests of rollcall.deploy.kinds.language."""
