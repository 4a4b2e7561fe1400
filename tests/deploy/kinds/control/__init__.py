"""Tests of rollcall.deploy.kinds.control."""
