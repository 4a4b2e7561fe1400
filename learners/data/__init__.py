"""Data sets: what is in them, and the order in which a learner meets it."""
