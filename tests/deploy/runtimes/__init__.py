"""Tests of rollcall.deploy.runtimes."""
