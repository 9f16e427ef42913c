"""`python -m conr_ray.data`: what a data set holds, the benchmark sets, and the cache."""

from conr_ray.command_line import run_command
from conr_ray.data_commands import main

if __name__ == "__main__":
    run_command(main)
