"""Tests of rollcall.actors."""
