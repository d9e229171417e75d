"""What tasks that answer questions share: examples, scores, predictions."""
