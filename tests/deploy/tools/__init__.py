"""Tests of rollcall.deploy.tools."""
