"""Tests of rollcall.learners.models.language."""
