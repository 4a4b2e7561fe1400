"""Tests of rollcall.learners.algorithms.preferences."""
