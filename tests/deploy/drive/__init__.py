"""Tests of rollcall.deploy.drive."""
