"""Tests of rollcall.reward_service.preferences."""
