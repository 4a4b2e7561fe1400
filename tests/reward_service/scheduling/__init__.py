"""Tests of rollcall.reward_service.scheduling."""
