import subprocess
import sys

import pytest

import alitok

HEAVY = ("torchvision", "lightning", "torchmetrics", "datasets", "scipy", "matplotlib", "torch_fidelity", "cleanfid")


def loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    return set(output.splitlines()[-1].split())


def test_import_alone_is_free():
    assert not loaded_after("import alitok") & {"torch", *HEAVY}


def test_public_names_load_torch_and_nothing_heavy():
    modules = loaded_after("from alitok import generate, load_generator, load_tokenizer, __version__")
    assert "torch" in modules
    assert not modules & set(HEAVY)


def test_names():
    assert alitok.__version__.count(".") == 2
    assert {"generate", "load_generator", "load_tokenizer", "__version__"} <= set(dir(alitok))
    assert callable(alitok.generate)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = alitok.nothing
