"""Tests of rollcall.reward_service.scorers."""
