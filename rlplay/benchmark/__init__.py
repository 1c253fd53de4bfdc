"""The benchmark, ``python -m rlplay bench``: the speed of each engine as a multiple of two limits of this machine.

Steps per second depend on the machine and on its load. Therefore two limits are measured in the same run as the
engines, with the same environments, and engines are compared by their ratio to these limits.

limit a, in tables "stepping alone"
    A plain Python loop over the environments, in the calling thread. Each environment takes an action that was drawn
    uniformly before the clock started (a NumPy integer, as the engines pass it), and is reset when its episode ends.
    The loop keeps the current observations in a list and records nothing.
limit b, in tables "stepping, network": stepping, and the bare forward pass
    The same loop; before each step the observations are stacked (``np.stack``, ``torch.from_numpy``, ``.to`` the
    device), and the actor's networks (body, policy and value) are evaluated once on the batch ``(1, B, ...)`` under
    ``torch.no_grad``. Nothing is sampled: the actions are those of limit a. On CUDA the host waits for the result at
    each step, because an actor's actions are not known earlier either.

Every process uses one torch thread (``--threads``). A limit uses one thread: engines that use several cores can exceed
the limits.

How the comparison is made fair
-------------------------------
Each configuration opens its feed once and keeps the feed open. All limits and engines of one work are measured in
rounds: each round measures every one of them once, one after the other, so that a disturbance of the machine affects
all of them. While another configuration is measured, a feed is paused: its collector and its workers stop between two
steps. The first fragment of each window is received but not measured, because the pause interrupted its collection.
From then on one fragment is collected for each one received. So a window of n fragments, from the receipt of one
fragment to the receipt of the n-th after it, holds the work of exactly n fragments. The first round does not count: it
warms everything up, and finds out how many fragments fill a window.

In each round an engine has three windows: collection alone; training alone, on a fragment that was received before;
and both. The learner's optimiser has a learning rate of 0: it does all of its work, but the policy stays the same, and
with it the length of the episodes. The overlap of training and collection is

    efficiency = max(collection alone, training alone) / both

in seconds per fragment: 1 if the shorter of the two is hidden completely. Ratios are ratios of medians over the rounds.

Modules: ``spec`` (what the command line accepts), ``works`` (environments and actors), ``measure`` (measurements and
the two limits), ``runs`` (engines and the learner), ``gpu`` (figures from the device's trace), ``report`` (table and
picture), ``command`` (the command itself).
"""
