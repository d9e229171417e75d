"""What tasks that answer questions share: files, examples, scores, predictions."""
