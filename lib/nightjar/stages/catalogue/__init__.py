"""What `build_items` is made of: sources joined, items numbered and cut into parts."""
