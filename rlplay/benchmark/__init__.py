"""The benchmark, ``python -m rlplay bench``: how fast each engine is, as a multiple of what cannot be beaten here.

Steps per second depend on the machine, and on what else it does. So two limits are measured in the same run, in turns
with the engines, with the same environments; engines are compared by their ratio to them.

limit a: stepping alone
    A plain Python loop over the environments, in the calling thread. Each takes an action that was drawn, uniformly,
    before the clock was started (a NumPy integer, as environments get it from the engines), and is reset when its
    episode has ended. Observations are kept in a list, and nothing is recorded.
limit b: stepping, and the bare forward pass
    The same loop, but before each step the observations are stacked (``np.stack``, ``torch.from_numpy``; ``.to`` the
    device), and the actor's networks (body, policy and value) are evaluated once on the batch ``(1, B, ...)``, under
    ``torch.no_grad``. Nothing is sampled: the actions are ready-made, as in a. On CUDA the result is waited for at each
    step, since no actor knows its actions earlier.

One torch thread (``--threads``) is all there is in every process. A limit is one thread's: engines that use several
cores can exceed it.

How it is made fair
-------------------
Each configuration opens its feed once, and keeps it. They take turns, all of one work together (round robin), so that
whatever disturbs the machine disturbs all of them. Between its turns a feed is paused: its collector, and whatever
workers it has, stand still at a step's boundary. The first fragment of each window is received but not measured: it is
the one that the pause has cut in two. From then on there is one fragment collected for each one received, so that a
window of n fragments, from the receipt of one to the receipt of the n-th after it, holds the work of exactly n. The
first round, in which everything warms up and it is settled how many fragments make a turn, does not count.

A turn has three windows: collection alone; training alone, on a fragment that is there; and both. The learner's
optimiser has a learning rate of 0: it does all of its work, yet the policy, and with it the length of the episodes,
stays what it was. Training and collection overlap by

    efficiency = max(collection alone, training alone) / both

(seconds per fragment): 1 if the shorter one is hidden altogether. Ratios are ratios of medians over the turns.
"""
