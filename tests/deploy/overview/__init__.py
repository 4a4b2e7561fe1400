"""Tests of rollcall.deploy.overview."""
