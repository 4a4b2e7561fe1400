"""Tests of rollcall.learners.algorithms.language."""
