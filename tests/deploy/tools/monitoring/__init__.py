"""Tests of rollcall.deploy.tools.monitoring."""
