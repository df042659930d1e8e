"""Textured images with planted leaks."""

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter


def texture(seed, shape=(96, 96)):
    """A random image with structure at several scales, grey values 0 to 255."""
    rng = np.random.default_rng(seed)
    layers = [gaussian_filter(rng.standard_normal(shape), s) * s for s in (1.5, 4, 10)]
    image = sum(layers)
    image = (image - image.min()) / (image.max() - image.min())
    return np.round(image * 255).astype(np.uint8)


@pytest.fixture
def image_set(tmp_path):
    """Write images and a datalist; ``change(array, row)`` plants what a test needs."""

    def make(n=60, change=None, columns="image,class,patient_id,site", row=None):
        lines = [columns]
        for number in range(n):
            category = "ab"[number % 2]
            array = texture(number)
            if change is not None:
                array = change(array, category, number)
            name = f"p{number:03d}.png"
            Image.fromarray(array).save(tmp_path / name)
            extra = row(category, number) if row else "here"
            lines.append(f"{name},{category},patient{number},{extra}")
        (tmp_path / "datalist.csv").write_text("\n".join(lines) + "\n")
        return tmp_path

    return make
