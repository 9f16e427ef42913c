"""Images: where they come from, how they are kept, how views are made."""
