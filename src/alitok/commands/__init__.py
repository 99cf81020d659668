"""A file per verb (`VERBS` in cli.py): `add_arguments(parser)` and `run(args)`; other files are what verbs share."""
