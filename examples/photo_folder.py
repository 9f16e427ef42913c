"""Make a folder of real pictures to try things on: some test images of CIFAR-10, as files.

python examples/photo_folder.py data/photos                         # torchvision downloads them
python examples/photo_folder.py data/photos --data cifar10.parquet  # from a table with image, label

Files lie in a sub-folder for each class, so that metrics can be told; training does not look at it.
A folder that is complete is left as it is.
"""

import argparse
import sys
from collections.abc import Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path

from PIL import Image

# Of CIFAR-10, by label.
NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


def main() -> None:
    """Write the files, those that exist too."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, help="Parquet file of CIFAR-10 (default: download)")
    parser.add_argument("--count", type=int, default=4000)
    args = parser.parse_args()
    if args.folder.is_dir() and len([*args.folder.glob("*/*.png")]) == args.count:
        print(f"{args.folder}: {args.count:,} pictures")
        return
    pictures = downloaded(args.folder.parent) if args.data is None else in_table(args.data)
    for number, (picture, label) in enumerate(islice(pictures, args.count)):
        file = args.folder / NAMES[label] / f"{number:05}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file)
    print(f"{args.folder}: {args.count:,} pictures")


def downloaded(place: Path) -> Iterator[tuple[Image.Image, int]]:
    """Test images and labels, kept in `place` by torchvision."""
    from torchvision.datasets import CIFAR10

    try:
        images = CIFAR10(place, train=False, download=True)
    except (OSError, RuntimeError) as error:
        sys.exit(f"CIFAR-10 cannot be downloaded ({error}): give DATA=FILE, a Parquet file of it")
    return (images[row] for row in range(len(images)))


def in_table(file: Path) -> Iterator[tuple[Image.Image, int]]:
    """Images and labels of a Parquet file with encoded images; of its split `test`, if it has."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    if "split" in table.column_names:
        table = table.filter(pc.equal(table["split"], "test"))
    for image, label in zip(table["image"], table["label"], strict=True):
        yield Image.open(BytesIO(image.as_py())), label.as_py()


if __name__ == "__main__":
    main()
