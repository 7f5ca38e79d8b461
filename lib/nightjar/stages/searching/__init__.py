"""What `retrieve` is made of, and what later stages need of it: who may get what, and how much was found."""
