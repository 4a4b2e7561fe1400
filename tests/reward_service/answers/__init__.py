"""Tests of rollcall.reward_service.answers."""
