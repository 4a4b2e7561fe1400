"""Tests of rollcall.reward_service.sandbox."""
