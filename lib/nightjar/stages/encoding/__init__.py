"""What `encode_items` and `encode_queries` are made of: a plan, its parts, and what goes wrong."""
