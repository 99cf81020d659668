"""LightningModules (thin), the phase schedule, optimizer groups."""
