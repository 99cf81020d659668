"""Plain torch models for a single device: no Lightning, no files, no process groups."""
