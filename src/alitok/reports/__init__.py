"""Finished runs on disk, and the pages that show them."""
