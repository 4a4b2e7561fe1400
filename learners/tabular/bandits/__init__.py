"""Bandits: one file per method, each for many problems side by side."""
