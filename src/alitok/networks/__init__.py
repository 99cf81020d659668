"""Frozen networks that losses and measures look through."""
