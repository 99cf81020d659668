"""The leaf every other room may import: errors, files, collectives, seeds, building by class path."""
