"""Tests of rollcall.reward_service.models."""
