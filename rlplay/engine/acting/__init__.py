"""The behaviour copy: the copy of the actor that acts while the learner changes the original."""
