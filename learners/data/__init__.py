"""Data sets as sources of batches."""
