"""Tests of rollcall.deploy.runtimes.on_ray."""
