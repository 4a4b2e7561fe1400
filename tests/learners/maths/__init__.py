"""Tests of rollcall.learners.maths."""
