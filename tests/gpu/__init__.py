"""One command that shows what the engine does on a GPU: python -m tests.gpu, or make gpu."""
