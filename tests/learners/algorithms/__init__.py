"""Tests of rollcall.learners.algorithms."""
