"""The recurrent state of an actor: its form, and its reset where an episode begins."""
