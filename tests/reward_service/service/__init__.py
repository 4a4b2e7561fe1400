"""Tests of rollcall.reward_service.service."""
