"""Images: from a folder or an LMDB to pixels of one size."""
