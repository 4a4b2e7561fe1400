"""Tests of rollcall.learners.collators."""
