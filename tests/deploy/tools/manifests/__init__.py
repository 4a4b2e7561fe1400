"""Tests of rollcall.deploy.tools.manifests."""
