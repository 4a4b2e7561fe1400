"""`rollcall sweep`: one recipe over seeds and settings, each trial a run of its own, several at a time."""
