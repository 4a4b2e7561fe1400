"""Whole runs through the command line: what they promise together."""
