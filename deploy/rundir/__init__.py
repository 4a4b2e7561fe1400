"""Run directories: found, claimed, read, gone on with."""
