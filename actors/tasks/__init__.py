"""Text tasks, one a file: a file that names its class in TASK is a task."""
