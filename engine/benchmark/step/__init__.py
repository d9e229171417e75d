"""python -m engine.benchmark.step: a training step, part by part, beside the original's way."""
