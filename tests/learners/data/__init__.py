"""Tests of rollcall.learners.data."""
