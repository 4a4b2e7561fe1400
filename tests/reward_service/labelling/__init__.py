"""Tests of rollcall.reward_service.labelling."""
