"""Tests of rollcall.actors.tasks."""
