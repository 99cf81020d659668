"""Helpers that every other package may import: errors, files, collectives, seeds, building by class path."""
