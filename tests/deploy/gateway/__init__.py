"""Tests of rollcall.deploy.gateway."""
