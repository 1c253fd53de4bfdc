"""The consumer's side of one collector in a Ray actor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeAlias

import cloudpickle

from ..acting.torch_context import TorchContext
from ..collector.messages import Token
from ..concurrency.channel import Channel
from ..concurrency.exceptions import add_note, unpack
from ..concurrency.sendable import unpickle_from
from ..remote.collector_process import CollectorSpec, Reply
from ..remote.elsewhere import CollectorElsewhere
from ..stepping.shares import name_environments
from .collector_actor import CollectorActor, Failed, Part, Request
from .object_store import Bytes, PartForms, bytes_of
from .reported_progress import Report, ReportedProgress

__all__ = ["Inbox", "RayCollector"]

_MOST_DEATHS = 3
"""A collector that has died so often in one fragment is not made anew: it would die again."""

_QUEUE = "the queue for a place in the cluster"

Inbox: TypeAlias = "Channel[tuple[RayCollector, Future[Any]] | None]"
"""Where answers arrive, from any thread. None: the gate has changed."""


class RayCollector(CollectorElsewhere):
    """One collector in a Ray actor; if that dies, the same collector in another Ray actor.

    Attributes
    ----------
    fragment, finals : Fragment, Final
        The fragment of the last reply, on the host: views of Ray's memory, which is read-only, until the next one is
        started.
    """

    progress: ReportedProgress
    fragment: Any = None
    finals: Any = ()

    def __init__(
        self, ray: Any, number: int, spec: CollectorSpec, inbox: Inbox, ray_options: Mapping[str, Any], *, restart: bool
    ) -> None:
        """Ask Ray for the actor, which makes its environments as soon as it has a place.

        Raises TypeError if the factory or the actor cannot be pickled, and what Ray raises for wrong options.
        """
        self._ray, self._number, self._inbox, self._restart = ray, number, inbox, restart
        super().__init__(spec.columns)
        try:
            self._spec = cloudpickle.dumps(spec)
        except Exception:
            spec.check_sendable("a Ray actor")
            raise
        self._kind = ray.remote(concurrency_groups={"control": 1})(CollectorActor).options(**ray_options)
        self.progress = ReportedProgress(self._ask_for_report)
        self._state = b""
        """What the fragment that is being collected, or the next one, is collected from. Empty if it is not kept."""
        self._forms: PartForms | None = None
        self._torch_context: TorchContext | None = None
        self._n_deaths = 0
        self._asked: tuple[Any, ...] = ()
        """The method and the arguments of the last request."""
        self._start()
        self.request("make", self._spec)

    def _start(self) -> None:
        self._place = ""
        self.progress.begin_anew(_QUEUE)
        self.actor = self._kind.remote(self._restart)
        self.tell("where").future().add_done_callback(partial(self._note_place, self.actor))

    def _note_place(self, actor: Any, place: Future[str]) -> None:
        if place.exception() is None and actor is self.actor:
            self._place = f" on {place.result()}"
            if self.progress.doing == _QUEUE:
                self.progress.doing = "starting"

    @property
    def name(self) -> str:
        """The number of the collector and its environments, and once it has a place its node and process."""
        return f"collector {self._number} ({name_environments([self.columns])}){self._place}"

    def request(self, method: str, *args: Any) -> None:
        """Call a method in the thread that collects; the answer arrives in the inbox."""
        self._asked = method, *args
        self._call(method, *args)

    def _call(self, method: str, *args: Any) -> None:
        future = getattr(self.actor, method).remote(*args).future()
        future.add_done_callback(lambda answer: self._inbox.put((self, answer)))

    def tell(self, method: str) -> Any:
        """Call a method also while a fragment is being collected; return Ray's reference to the answer."""
        return getattr(self.actor, method).options(concurrency_group="control").remote()

    def _ask_for_report(self) -> Future[Report]:
        return self.tell("report").future()  # type: ignore[no-any-return]

    def death_of(self, answer: Future[Any]) -> RuntimeError | None:
        """Return an error if Ray says, instead of an answer, that the actor has died or cannot be reached.

        Its message names the collector, its node and its process.
        """
        error, raised = answer.exception(), self._ray.exceptions
        if not isinstance(error, raised.RayError) or isinstance(error, raised.RayTaskError):
            return None
        death = RuntimeError(f"{self.name} has died: {' '.join(str(error).split())}")
        death.__cause__ = error
        return death

    def read(self, answer: Future[Any]) -> Any:
        """Return an answer; raise what the collector has raised."""
        value = answer.result()
        if isinstance(value, Failed):
            self.progress.load(value.report)
            raise unpack(value.error)
        return unpickle_from(self.name, value) if isinstance(value, bytes) else value

    def set_up(self, forms: PartForms, torch_context: TorchContext, state: bytes) -> None:
        """Set how fragments are read, and what a new collector is made from; before the first fragment."""
        self._forms, self._torch_context, self._state = forms, torch_context, state

    def start_fragment(self, token: Token, weights: Any) -> None:
        """Request a fragment; ``weights`` is Ray's reference to the weights."""
        self.version = token.version
        self.fragment, self.finals = None, ()  # Ray may use the memory of the last fragment again
        self.request("collect", Request(token.version, token.snapshot.modes, token.snapshot.plain), weights)

    def start_again(self, death: RuntimeError) -> None:
        """Have another Ray actor do what was requested, from the state before that.

        Raises the error ``death`` if there is no such state, or if several Ray actors in a row have died.
        """
        if not self._state:
            raise death
        self._n_deaths += 1
        if self._n_deaths == _MOST_DEATHS:
            add_note(death, f"{_MOST_DEATHS} Ray actors in a row have died of this fragment: none is made anew")
            raise death
        self._ray.kill(self.actor)  # it may be alive, but out of reach
        self._start()
        self._call("go_on", self._spec, self._state, self._torch_context, *self._asked)

    def receive_fragment(self, answer: Part) -> None:
        """Keep an answer until its fragment is taken."""
        self.reply, self._state, self._n_deaths = answer.reply, answer.state, 0
        self._read_fragment(answer.fragment, answer.finals)
        self.progress.load(answer.report)

    def _read_fragment(self, fragment: Sequence[Bytes], finals: Sequence[Bytes]) -> None:
        assert self._forms is not None, "call `set_up` first"
        assert self.reply is not None, "there is no reply"
        self.fragment = self._forms.fragment(fragment)
        self.finals = self._forms.finals(finals, self.reply.n_finals) if finals else ()

    def load_finished_part(self, saved: Mapping[str, Any] | None) -> None:
        """Go on as if it had answered with what :meth:`finished_part` returned."""
        if saved is not None:
            self.version, self.reply = saved["version"], Reply(*saved["reply"])
            self._read_fragment(bytes_of(saved["fragment"]), bytes_of(saved["final"]))

    def request_end(self) -> Any:
        """Request that it stops at its next step and closes its environments; return Ray's reference to the answer."""
        self.tell("end")
        return self.actor.close.remote()

    def complaints(self, reference: Any) -> list[str]:
        """Return what went wrong in closing the environments; nothing if it has died before, which was told."""
        try:
            answer = self._ray.get(reference)
        except self._ray.exceptions.RayError:
            return []
        return [f"{self.name}: {unpack(answer.error)!r}"] if isinstance(answer, Failed) else answer

    def exit(self) -> Any:
        """End the Ray actor as a Python program ends; return a reference that is resolved then."""
        return self.actor.__ray_terminate__.remote()
