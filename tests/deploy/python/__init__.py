"""Tests of rollcall.deploy.python."""
