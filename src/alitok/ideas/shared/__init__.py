"""Code that two or more ideas use."""
