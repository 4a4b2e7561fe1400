"""Processes for functions that may hang, explode or die."""
