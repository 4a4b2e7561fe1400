"""Tests of rollcall.learners.models."""
