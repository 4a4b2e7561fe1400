"""Tests of rollcall.deploy.cli."""
