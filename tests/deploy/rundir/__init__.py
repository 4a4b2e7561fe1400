"""Tests of rollcall.deploy.rundir."""
