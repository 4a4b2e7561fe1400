"""Tests of rollcall.cluster.inputs."""
