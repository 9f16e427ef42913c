"""Everything that needs a GPU, in two calls of minutes; rehearsed on a CPU.

    PYTHONPATH=. python benchmarks/gpu.py check --out OUT
    PYTHONPATH=. python benchmarks/gpu.py train --out OUT --data CIFAR10 --minutes 8
    PYTHONPATH=. python benchmarks/gpu.py table OUT/check.json     # for docs/benchmarks.md
    PYTHONPATH=. python benchmarks/gpu.py check --out OUT --device cpu --tiny   # the rehearsal

`check` runs every path of training on the device and on the CPU and compares them, counts what
waits for the device, and times steps, plain and compiled, against the card's own rates. `train`
fits the recipe to the minutes given and writes curve, assignments and weights. CIFAR10 is one
Parquet file, or a folder of them, with columns image, label and split.

Neither Ray nor a terminal library is needed: torch, torchvision, pyarrow, numba, scikit-learn,
PyYAML, Pillow and pydantic are. No file in OUT itself is larger than 16 MiB.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from on_gpu.check import check
from on_gpu.table import table
from on_gpu.train import train_for


def main() -> None:
    """Parse the arguments and run a mode."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    modes = parser.add_subparsers(dest="mode", required=True)
    for name in ("check", "train"):
        mode = modes.add_parser(name)
        mode.add_argument("--out", type=Path, required=True, help="folder of the results")
        mode.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
        mode.add_argument("--tiny", action="store_true", help="digits instead of the preset")
    modes.choices["train"].add_argument("--data", type=Path, help="CIFAR-10 in Parquet files")
    modes.choices["train"].add_argument("--preset", default="cifar10_fast")
    modes.choices["train"].add_argument("--minutes", type=float, default=8.0)
    modes.choices["train"].add_argument("--seed", type=int, default=0)
    modes.add_parser("table").add_argument("file", type=Path, help="a check.json")
    args = parser.parse_args()
    if args.mode == "table":
        print(table(json.loads(args.file.read_text())))
        return
    if args.mode == "train" and not args.tiny:
        files = (
            [args.data] if args.data is None or args.data.is_file() else args.data.glob("*.parquet")
        )
        if args.data is None or not list(files):
            parser.error("train needs --data, a Parquet file or a folder with some")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here: --device cpu --tiny rehearses")
    if args.mode == "train" and not args.minutes > 0:
        parser.error("--minutes must be above 0")
    device = torch.device(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.mode == "check":
        sys.exit(check(args.out, device, tiny=args.tiny))
    train_for(args, device)


if __name__ == "__main__":
    main()
