"""Studies over several runs or models."""
