from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture(scope="session")
def ball() -> np.ndarray:
    """A ball of radius 5 voxels, with space to move by 5 along each axis."""
    grid = np.indices((24, 24, 24)) - 11
    return (grid**2).sum(axis=0) <= 25
