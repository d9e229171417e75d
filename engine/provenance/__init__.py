"""Where a result comes from: run.json, and what differs between two runs."""
