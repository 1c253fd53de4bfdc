"""A stand-in for Ray, for tests of what does not depend on processes and nodes: Ray actors are objects in this process.

As Ray does, it pickles what is sent, hands out arrays that are read-only, calls the methods of an actor in one thread,
and those of its concurrency group in another one.
"""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import SimpleNamespace

import cloudpickle

from rlplay.engine.cluster.collector_actor import CollectorActor


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


class ActorDiedError(RayError):
    pass


def sent(thing):
    """Return a copy as it arrives on the other side."""
    buffers = []
    data = cloudpickle.dumps(thing, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[bytes(buffer) for buffer in buffers])


class Reference:
    """Refers to an object in the store, or to an answer that is to come."""

    def __init__(self, value):
        self.value = value

    def future(self):
        return self.value


class Actor:
    """The handle of an actor: `actor.method.remote(...)`, `actor.method.options(concurrency_group=...).remote(...)`."""

    def __init__(self, kind, args):
        self._threads = {name: ThreadPoolExecutor(1, f"stand-in-{name}") for name in ("", "control")}
        self._pending = []
        self._living = threading.RLock()
        """Held while a call is handed over, and while the actor dies."""
        self.object = kind(*args)
        self.is_dead = False

    def __getattr__(self, method):
        return SimpleNamespace(
            remote=lambda *args: self._call("", method, args),
            options=lambda concurrency_group: SimpleNamespace(
                remote=lambda *args: self._call(concurrency_group, method, args)
            ),
        )

    def _call(self, thread, method, args):
        answer = Future()
        args = [arg.value if isinstance(arg, Reference) else sent(arg) for arg in args]
        with self._living:
            if self.is_dead:
                answer.set_exception(ActorDiedError("The actor is dead."))
            elif method == "__ray_terminate__":
                self.die("It has ended.")
                answer.set_exception(ActorDiedError("It has ended."))
            else:
                self._pending.append(answer)
                self._threads[thread].submit(self._run, answer, method, args)
        return Reference(answer)

    def _run(self, answer, method, args):
        try:
            value = sent(getattr(self.object, method)(*args))
        except BaseException as error:
            self._answer(answer.set_exception, RayTaskError(repr(error)))
        else:
            self._answer(answer.set_result, value)

    def _answer(self, answer, value):
        try:
            answer(value)
        except Exception:
            assert self.is_dead  # it has been answered already

    def die(self, why):
        """Die: whoever waits for an answer gets an error. The thread that collects ends at the next step."""
        with self._living:
            self.is_dead = True
            for answer in self._pending:  # before the end of the step, which would be the answer
                if not answer.done():
                    self._answer(answer.set_exception, ActorDiedError(why))
            self.object.end()
            for thread in self._threads.values():
                thread.shutdown(wait=False, cancel_futures=True)


class StandIn:
    """What `rlplay.engine.cluster` uses of the module `ray`."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError, ActorDiedError=ActorDiedError)

    def __init__(self):
        self.actors, self.puts, self.options = [], [], None
        self.initialised = True

    def is_initialized(self):
        return self.initialised

    def remote(self, **groups):
        assert groups == {"concurrency_groups": {"control": 1}}
        return lambda kind: SimpleNamespace(options=lambda **options: self._placed(kind, options))

    def _placed(self, kind, options):
        self.options = options

        def start(*args):
            self.actors.append(Actor(kind, args))
            return self.actors[-1]

        return SimpleNamespace(remote=start)

    def put(self, value):
        self.puts.append(value)
        return Reference(sent(value))

    def wait(self, references, *, num_returns, timeout=None):
        assert num_returns == len(references)
        wait([reference.value for reference in references], timeout)
        done = [reference for reference in references if reference.value.done()]
        return done, [reference for reference in references if reference not in done]

    def get(self, reference):
        return reference.value.result()

    def kill(self, actor):
        actor.die("It was killed.")


def install(monkeypatch):
    """Have `cluster` use a stand-in; return it."""
    ray = StandIn()
    monkeypatch.setattr("rlplay.engine.rollout.cluster.connect", lambda: ray)
    numbers = iter(range(100))
    monkeypatch.setattr(CollectorActor, "where", lambda self: f"node {next(numbers)}")
    return ray
