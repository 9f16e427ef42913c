"""A local page over clusters, on which a person changes and names them."""
