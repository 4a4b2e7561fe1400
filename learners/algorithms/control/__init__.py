"""Algorithms that learn from env steps. A file that names its class in ALGORITHM is one. Here are those that learn from
what their own policy has just done; the others are in off_policy and imitation."""
