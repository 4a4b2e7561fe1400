"""Tests of rollcall.deploy.report."""
