"""The picture of `conr_ray.browse` in docs/browse.md.

python benchmarks/browse_picture.py runs/digits docs/figures/browse.jpg
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys

from playwright.sync_api import sync_playwright


def main() -> None:
    """Browse the run, and write how its first page looks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("out")
    args = parser.parse_args()
    command = [sys.executable, "-m", "conr_ray.browse", args.run]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().removeprefix("browse: ").strip()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            page = browser.new_page(viewport={"width": 1100, "height": 640})
            page.goto(address, wait_until="networkidle")
            page.screenshot(path=args.out, type="jpeg", quality=80)
            browser.close()
        process.terminate()


if __name__ == "__main__":
    main()
