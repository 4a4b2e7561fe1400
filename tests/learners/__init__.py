"""Tests of rollcall.learners."""
