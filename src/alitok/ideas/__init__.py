"""Ideas from the literature, one file each. The core imports none: a configuration names them by class_path."""
