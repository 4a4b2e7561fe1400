"""Tests of rollcall.learners.batches."""
