"""Playing whole episodes to see how good an actor is."""
