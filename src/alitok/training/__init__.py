"""LightningModules, the training step, the schedule of phases, optimizer groups."""
