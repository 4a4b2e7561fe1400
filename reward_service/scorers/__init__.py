"""The scorers, one kind a file."""
