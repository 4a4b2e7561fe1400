"""Tests of rollcall.learners.algorithms.control."""
