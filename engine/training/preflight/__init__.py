"""Whether a training can run, before it does: all that keeps it from running, and what it will take."""
