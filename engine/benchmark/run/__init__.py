"""What a run does beside its steps, timed: python -m engine.benchmark.run.monitors."""
