"""Tests of rollcall.reward_service.workers."""
