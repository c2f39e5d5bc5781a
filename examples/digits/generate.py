"""Write scikit-learn's handwritten digits as PNG files: `python examples/digits/generate.py`.

1,797 pictures, 8 x 8 pixels with 17 shades of grey, in a folder for each digit, under
examples/digits/data/, where the repository has them already. They are those of Alpaydin and
Kaynak (UCI, 1998; CC BY 4.0), which scikit-learn carries; nothing is fetched.
"""

from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

FOLDER = Path(__file__).parent / "data"


def main() -> None:
    """Write the files; those that are there already are written anew, to the same bytes."""
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        file = FOLDER / str(label) / f"{number:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        # 16 is the darkest ink; 255 / 16 is no whole number, and 15 keeps the shades apart.
        Image.fromarray((pixels * 15).astype("uint8")).save(file, optimize=True)
    print(f"wrote {len(digits.images):,} pictures to {FOLDER}")


if __name__ == "__main__":
    main()
