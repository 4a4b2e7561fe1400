"""Tests of rollcall.deploy.kinds."""
