"""The losses: functions ``(fragment or batch, actor, ...) -> (loss, info)``, one module for each algorithm."""
