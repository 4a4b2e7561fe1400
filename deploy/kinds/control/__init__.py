"""Control: a policy network in a gymnasium env."""
