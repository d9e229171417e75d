"""Sentences and answers: from JSON to columns in shared memory."""
