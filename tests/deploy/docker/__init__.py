"""Tests of the images of deploy/docker."""
