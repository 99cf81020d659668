"""Data specs, crops, token caches and the one DataModule."""
