"""Libraries that are imported without what no part here uses."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

from provla.core.libraries import packages_distributions


def test_transformers_comes_without_scikit_learn_and_scipy() -> None:
    """Seconds of every process, for kinds of generation and of detectors that nothing here has."""
    code = (
        "import sys; from provla.core.libraries import transformers_library\n"
        "t = transformers_library(); t.Qwen2Model; t.SiglipVisionModel\n"
        "assert not {'sklearn', 'scipy.optimize'} & sys.modules.keys()\n"
        "assert t.utils.is_sklearn_available() and t.utils.is_scipy_available()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_packages_are_those_that_the_library_finds() -> None:
    expected = importlib.metadata.packages_distributions()
    assert {name: sorted(of) for name, of in packages_distributions().items()} == {
        name: sorted(of) for name, of in expected.items()
    }
