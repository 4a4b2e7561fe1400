"""Learned reward models: of texts and of segments of behaviour, in memory and as directories."""
