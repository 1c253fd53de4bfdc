"""The actor's side of collecting: the behaviour copy, its checks, groups and the torch context."""
