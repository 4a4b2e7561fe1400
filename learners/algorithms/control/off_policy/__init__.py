"""Algorithms that learn from kept experience, whoever acted: DQN, SAC and TD3 from replay, IQL from a recorded set."""
