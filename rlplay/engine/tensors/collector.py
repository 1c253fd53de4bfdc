"""The collector of environments in torch.

It takes tokens and makes deliveries as the other collectors do, and waits less: for nothing if actor and consumer are
on a device, and for the ends of a fragment with ``final``. So the host runs ahead of the device by as many fragments as
have been asked for, and no further.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from ..acting.behaviour import Behaviour
from ..acting.torch_context import TorchDefaults
from ..collector.collector import Collector
from ..collector.laid_out import LaidOut
from ..collector.messages import Delivery, Plan, Token
from ..concurrency.gate import Gate
from ..concurrency.progress import Progress
from ..core import Episode, Final
from ..memory.lane import Lane, Place
from ..memory.layout import info_layout, outcome_layout, state_layout
from ..memory.slot import Blocks, RowLayout
from .action_checks import NONE_WRONG, ActionCheck
from .captured_step import CapturedStep, HeldTensors
from .ends import Ends, EndsOnDevice, EpisodeArrays, LateEnds
from .finals import check_lasts, collect_final
from .loop import Loop
from .memory import FragmentMemory, make_blocks, tensor_rows
from .stepper import TensorStepper

__all__ = ["TensorCollector"]

_NO_STATE = (
    "a feed over vector environments in torch can be neither saved nor continued yet: save the actor and the "
    "optimiser, and make a new feed."
)


class TensorCollector(Collector):
    """Steps environments in torch with the behaviour copy, and delivers one fragment for each token."""

    stepper: TensorStepper  # type: ignore[assignment]

    def __init__(
        self,
        stepper: TensorStepper,
        behaviour: Behaviour,
        lane: Lane,
        plan: Plan,
        progress: Progress,
        gate: Gate,
        defaults: TorchDefaults,
    ) -> None:
        """Take the environments, and write their first rows.

        Raises
        ------
        ValueError
            The actor is on another device than the environments, or its ``reset`` does not honour a mask.
        """
        self._firsts: list[Blocks] = []
        self._layouts: list[RowLayout] = []
        self._memory: FragmentMemory | None = None  # made with the first fragment, in the collector's thread
        self._ends: EndsOnDevice | None = None
        self._spare: list[Ends] = []  # host memory that nobody uses at the moment
        self._copied: Any = None
        super().__init__(stepper, behaviour, lane, plan, progress, gate, defaults)  # type: ignore[arg-type]

    def state_dict(self, *, whole: bool) -> dict[str, Any]:
        """Raise NotImplementedError."""
        raise NotImplementedError(_NO_STATE)

    def load_state_dict(self, state: Mapping[str, Any], *, whole: bool) -> None:
        """Raise NotImplementedError."""
        raise NotImplementedError(_NO_STATE)

    def _lay_out(self) -> LaidOut:
        stepper, plan, lane = self.stepper, self._plan, self._lane
        _check_device(stepper, lane)
        self._action_check = ActionCheck(stepper.act, stepper.environments[0].device)
        state, info = state_layout(stepper.obs, stepper.act), info_layout(plan.entries)
        self._layouts = [RowLayout.of(state, info, one.n_envs) for one in stepper.environments]
        self._firsts = [make_blocks(layout, 1, lane) for layout in self._layouts]
        lane.host_wait(lane.record())
        for environment, blocks in zip(stepper.environments, self._firsts, strict=True):
            environment.begin(tensor_rows(blocks)[0])
            lane.borrow(HeldTensors(environment.instances).tensors)  # the caller may have made them on its own stream
        return LaidOut(state, outcome_layout(info), [])

    def _first_rows(self) -> list[Blocks]:
        return self._firsts

    def _check_actor(self) -> None:
        if not self._behaviour.spec.resets_by_mask:
            raise ValueError(
                "the actor's reset does not honour a bool mask, but which environments of these have begun an episode "
                "is known on their device alone: write `x = x.clone(); x[:, at] = 0`, or `torch.where(at[:, None], "
                "x.new_zeros(()), x)`, instead of `x[:, at].zero_()`, which changes a copy where `at` is a mask."
            )

    def _serve(self, token: Token) -> Delivery:
        lane, progress, behaviour = self._lane, self._progress, self._behaviour
        self._adopt(token)
        if lane.shared(Place.ACTOR, Place.HOST):
            lane.host_wait(self._copied)  # edge: copied -> refill
        memory, ends = self._memory_of_fragment()
        if self._n_collected:
            memory.carry_over(lane)
        else:
            memory.begin(self._firsts, lane)
            self._firsts.clear()
            progress.begin("actor.step")
            self._offer_environments(memory)
            rows, answers = [one.part for one in memory.groups], [one.answers[0] for one in memory.groups]
            behaviour.bind_rows(self._groups, rows, answers, memory.actor)
        stepper = self.stepper
        loop = Loop(
            memory, behaviour, self._groups, stepper.turns, stepper.environments, lane, progress, self.torch_context
        )
        loop.run(self._pass_gate)
        progress.begin("the hand-over")
        lane.launch(partial(ends.find, [(turn.blocks, turn.columns) for turn in memory.turns]))
        return self._deliver(token, loop, memory, ends.ends)

    def _offer_environments(self, memory: FragmentMemory) -> None:
        """Offer the environments whose step can be captured, each behind the last group of its turn."""
        stepper, call = self.stepper, self.torch_context.call_environments
        for environment, turn, members in zip(stepper.environments, memory.turns, stepper.turns, strict=True):
            if environment.capturable and turn.acts is not None:
                work = CapturedStep(environment, turn, call, self._lane)
                self._behaviour.offer_environment_step(self._groups[members[-1]], work, environment.generators)

    def _deliver(self, token: Token, loop: Loop, memory: FragmentMemory, ends: Ends) -> Delivery:
        lane, plan, stepper = self._lane, self._plan, self.stepper
        on_host = lane.shared(Place.ACTOR, Place.HOST)
        known = ends if on_host else None
        staged: Final | tuple[()] = ()
        late: LateEnds | None = None
        if plan.final:
            if known is None:
                known = self._take_spare()
                lane.copy(known, ends)
                lane.host_wait(lane.record())  # the only wait: who has ended
            ended = known.ended.numpy()
            for turn, without in zip(memory.turns, loop.without_last, strict=True):
                check_lasts(ended, turn.columns, without)
            staged = collect_final(ended, memory, self._behaviour, self._groups, stepper.turns, self.layout, lane)
        memory.deliver(token.blank, lane)
        self._copied = lane.record()  # the consumer's stream waits for this event (edge: copied -> read)
        if lane.shared(Place.CONSUMER, Place.HOST):
            lane.host_wait(self._copied)
        episodes: Collection[Episode] = []
        n_valid = 0
        if known is None:
            ends_below = self._take_spare()
            lane.copy(ends_below, ends)
            late = LateEnds(ends_below, lane.record(), lane, partial(self._read, self._n_collected))
        else:
            episodes, n_valid = self._read(self._n_collected, known)
        self._n_collected += 1
        return Delivery(
            version=token.version,
            fragment=token.blank,
            final=staged,
            copied=self._copied,
            consumer_stream=token.consumer_stream,
            snapshot=token.snapshot,
            steps=n_valid,
            warning=self._take_warning(episodes),
            episodes=episodes,
            late=late,
        )

    def _read(self, fragment: int, ends: Ends) -> tuple[EpisodeArrays, int]:
        """Return the episodes and the number of valid transitions out of the ends, on the host."""
        wrong = int(ends.wrong)
        if wrong != NONE_WRONG:
            t, b = divmod(wrong, self.stepper.groups[-1].stop)
            raise self._action_check.error(t, self._plan.first_env + b, fragment)
        found = ends.episodes(self._plan.first_env), int(ends.n_valid)
        if not self._lane.shared(Place.ACTOR, Place.HOST):
            self._spare.append(ends)
        return found

    def _take_spare(self) -> Ends:
        """Return host memory that nobody uses. Only this thread takes it; the consumer's gives it back."""
        if self._spare:
            return self._spare.pop()
        return Ends.empty(self._plan.n_steps, self.stepper.groups[-1].stop, Place.HOST, self._lane)

    def _memory_of_fragment(self) -> tuple[FragmentMemory, EndsOnDevice]:
        """Return the memory on the actor's device. It is allocated with the first fragment, on this stream."""
        if self._memory is None or self._ends is None:
            stepper, lane, plan = self.stepper, self._lane, self._plan
            self._memory = FragmentMemory(
                self._layouts, self.layout, plan.n_steps, stepper.environments, self._groups, stepper.turns, lane,
                final=plan.final,
            )  # fmt: skip
            self._ends = EndsOnDevice(plan.n_steps, stepper.groups[-1].stop, self._action_check, lane)
        return self._memory, self._ends


def _check_device(stepper: TensorStepper, lane: Lane) -> None:
    found = stepper.environments[0].device
    device = lane.actor_device
    if found.type == device.type and (found.index or 0) == (device.index or 0):
        return
    raise ValueError(
        f"the observations of the vector environment are on {found}, but the actor is to act on {device}: expected one "
        f"device, since nothing is taken through the host. Move the actor there (`actor.to({str(found)!r})`), or pass "
        f"`actor_device={str(found)!r}`; `device` may be another one."
    )
