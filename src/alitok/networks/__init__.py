"""Frozen networks for losses and metrics."""
