"""Is this machine right, and how fast is it: a look of one to two minutes, or all of it."""
