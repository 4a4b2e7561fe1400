"""Tests of rollcall.deploy.drive.design."""
