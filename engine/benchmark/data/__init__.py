"""python -m engine.benchmark.data: the annotation store and the image paths, beside the original's way."""
