"""Whole runs whose processes are killed on the way."""
