"""Tests of rollcall.actors.envs."""
