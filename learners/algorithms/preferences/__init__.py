"""Algorithms that learn from comparisons, without samples of their own."""
