"""Drawing tokens: guidance schedules, the key/value cache, the loop."""
