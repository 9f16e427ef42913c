"""Ray Tune and Optuna: search spaces, studies, trials and their table."""
