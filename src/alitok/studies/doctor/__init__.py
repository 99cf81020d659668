"""Is this machine right, and how fast is it: a minute's look, or all of it."""
