"""Write the network of a run for programs that do not have this package."""
