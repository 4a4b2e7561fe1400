"""Tests of the tabular methods."""
