"""One file per verb (`VERBS` in cli.py) with `add_arguments(parser)` and `run(args)`; verbs share the other files."""
