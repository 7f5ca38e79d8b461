"""What stages know of a bucket of users: its histories, and what they wrote."""
