"""What is to be cleaned in a set of images: duplicates, outliers, wrong members, blank pictures."""
