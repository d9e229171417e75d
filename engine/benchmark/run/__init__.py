"""Whole runs of the programs: what is told of them, and what watching them costs."""
