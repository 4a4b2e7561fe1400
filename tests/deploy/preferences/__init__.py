"""Tests of rollcall.deploy.preferences."""
