"""Tests of rollcall.learners.algorithms.control.off_policy."""
