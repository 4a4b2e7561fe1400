"""Tests of rollcall.deploy.config."""
