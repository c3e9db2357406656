"""What several tests of the bench want to have once."""

from __future__ import annotations

import pytest

from tests.export.models import tiny_f16_file


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory):
    """A random Llama of two blocks as an F16 file."""
    return tiny_f16_file(tmp_path_factory.mktemp("bench") / "llama", blocks=2)[3]
