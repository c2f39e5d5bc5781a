"""The sample digits are scikit-learn's, picture by picture."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

DATA = Path(__file__).parents[2] / "examples" / "digits" / "data"


def test_every_digit_is_there_once_under_its_label() -> None:
    digits = load_digits()
    assert len(list(DATA.glob("*/*.png"))) == len(digits.images)
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        with Image.open(DATA / str(label) / f"{number:04}.png") as picture:
            assert np.array_equal(np.asarray(picture), pixels * 15)
