"""Artifacts, the folders that pass a model to the next stage or to the hub; import and export of published weights."""
