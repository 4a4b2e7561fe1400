"""Language: a language model and a task, by reinforcement or by imitation."""
