"""Every test here renders manifests."""

import pytest


@pytest.fixture(autouse=True)
def _rendering(_kubectl: None) -> None:
    """Skip where there is no kubectl to do it."""
