"""Tests of rollcall.actors.engine without an engine; with real ones: tests/actors/language."""
