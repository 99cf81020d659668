"""Artifacts that 0.1 wrote load, and make the same ids, pixels and logits of the same inputs."""

import numpy as np
import pytest
from kept_files import FILES, TOLERANCE, kept, outputs

ARTIFACTS = sorted(path.name for path in (FILES / "artifacts").iterdir() if path.is_dir())


def test_every_module_and_idea_has_an_artifact() -> None:
    assert len(ARTIFACTS) == 24


@pytest.mark.parametrize("name", ARTIFACTS)
def test_it_loads_and_makes_what_it_made(name: str) -> None:
    file = kept("outputs", name, FILES / "artifacts" / f"{name}.npz")
    with np.load(file) as arrays:
        before = dict(arrays)
    inputs = {key: before.pop(key) for key in ("images", "keep", "tokens", "labels") if key in before}
    now = outputs(FILES / "artifacts" / name, inputs)
    assert now.keys() == before.keys()
    for key, array in before.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(now[key], array, rtol=TOLERANCE, atol=TOLERANCE, err_msg=key)
        else:
            np.testing.assert_array_equal(now[key], array, err_msg=key)
