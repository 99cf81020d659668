"""The literature, one file an idea. The core imports none of them: a configuration names them by class_path."""
