"""Producers of experience: gymnasium environments stepped under a policy they are handed. Knows nothing of learners."""
