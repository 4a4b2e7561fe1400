"""Tests of rollcall.learners.loop."""
