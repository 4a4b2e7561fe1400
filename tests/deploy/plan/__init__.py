"""Tests of rollcall.deploy.plan."""
