"""Tests of rollcall.actors.control."""
