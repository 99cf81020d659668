"""Loss terms, each (batch, outputs) -> scalar, and adversarial losses."""
