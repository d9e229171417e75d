"""A training, whatever the task: its start, its loop, and what is told and saved beside it."""
