"""Tests of rollcall.deploy.tools.bench."""
