"""Collectors in processes of their own, and the consumer's side of them."""
