"""python -m engine.benchmark.checkpoints: saving, verifying and loading, beside DeepSpeed's own."""
