"""The separate scoring service: protocol, HTTP application, scorers, reward models, preferences and the labelling page,
client. Imports nothing of ours but cluster; must never know what learns from its scores."""
