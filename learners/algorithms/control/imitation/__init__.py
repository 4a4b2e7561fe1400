"""Algorithms that imitate an expert: of recorded episodes (behavioural cloning), or as it is asked (DAgger)."""
