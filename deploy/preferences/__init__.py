"""Comparisons as the data of a run: read, divided, judged by."""
