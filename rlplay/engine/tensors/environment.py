"""A vector environment in torch, stepped on its own device.

Its rows are those of a vector environment on the host: :mod:`rlplay.engine.envs.vector_environment` has the tables of
the three autoreset modes. No step reads a value of a tensor, so in each mode all parts are treated alike, by masks:

``SAME_STEP``
    Last observations are in ``infos["final_obs"]`` or ``infos["final_observation"]``, a nest of tensors for all parts,
    of which those of ended episodes are read. The info of an ended episode is in ``infos["final_info"]``, if it is
    there, else in ``infos`` as of the others.
``DISABLED``
    After each step ``reset(options={"reset_mask": mask})`` is called; the mask, a bool tensor ``(n,)``, may be all
    False. The observations that it returns are used where the mask is True. (gymnasium's own vector environments refuse
    a mask that is all False. They step on the host, so reading the mask waits for no device.)
``NEXT_STEP``
    Whatever the environment says of the step that resets a part (flags, reward, info) is ignored, but for the
    observation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...nested import Nested
from ..concurrency.progress import Progress, vector_number
from ..envs.autoreset import class_names
from ..envs.info import Entries
from ..envs.returned.refused import infos_of, refused_vector_step
from ..envs.vectors.closing import close_environments
from .forms import ActionForm, InfoForm, ObservationForm, single_fields, to_flags, to_rewards, wide

__all__ = ["FINAL_NAMES", "TensorEnvironment", "TensorRow"]

FINAL_NAMES = ("final_obs", "final_observation")
"""The names of last observations in the infos of SAME_STEP."""

_STEP_VALUES = "(obs, reward, terminated, truncated, infos), or (obs, reward, dones, infos)"

Call = Callable[..., Any]
"""Calls an environment under the settings that environments are stepped under."""


class TensorRow(NamedTuple):
    """A row of one vector environment, as views ``(n, ...)`` on its device; ``obs``, ``act`` and ``info`` are flat.

    ``terminated``, ``truncated``, ``valid`` and ``info`` are of the transition that has led to the row.
    """

    stepno: Tensor
    obs: list[Tensor]
    act: list[Tensor]
    rew: Tensor
    fin: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    info: list[Tensor]


class TensorEnvironment:
    """A vector environment whose ``reset`` and ``step`` give torch tensors.

    Attributes
    ----------
    n_envs : int
        The number of its parts, ``n``.
    obs, act : nested :class:`~rlplay.engine.envs.spaces.Field`
        Shape and dtype of one part's observation, in the containers that the first observations came in, and of its
        action.
    spaces : tuple
        The observation space and the action space of one part.
    instances : list
        The environment.
    device : torch.device
        Where its observations are.
    mode : {"SAME_STEP", "NEXT_STEP", "DISABLED"}
        When it resets its parts.
    number : int
        What ``Progress.env`` is for it.
    capturable : bool
        Whether it says that its step may be part of a CUDA graph.
    """

    steps_in_background = False

    def __init__(
        self,
        env: Any,
        result: Any,
        mode: str,
        entries: Entries,
        progress: Progress,
        *,
        final: bool = False,
        first: int = 0,
        number: int | None = None,
    ) -> None:
        """Take an environment that has been reset.

        Parameters
        ----------
        env : vector environment
            With ``num_envs``, ``single_observation_space``, ``single_action_space``, ``reset`` and ``step``. The step
            returns ``(obs, reward, terminated, truncated, infos)``, or by an older API ``(obs, reward, dones, infos)``,
            where ``infos["time_outs"]`` are those of the ``dones`` that are truncations.
        result : tensors, or tuple
            What ``reset`` has returned: observations, or a pair of observations and infos.
        mode : {"SAME_STEP", "NEXT_STEP", "DISABLED"}
            The autoreset mode.
        entries : Entries
            The info entries to record.
        final : bool
            Whether the true last observations will be asked for.
        first : int
            The number of the first part in the feed.
        number : int or None
            Its place in a list of vector environments. None: it is not in a list.

        Raises
        ------
        TypeError, ValueError
            Its spaces cannot be recorded, or an observation does not fit its space.
        """
        self.mode = mode
        self._env, self._final, self.number = env, final, vector_number(number)
        self._owned: list[Any] = []
        self.n_envs, self.instances = int(env.num_envs), [env]
        self._on_host = bool(class_names(getattr(env, "unwrapped", env)) & {"SyncVectorEnv", "AsyncVectorEnv"})
        self.spaces = env.single_observation_space, env.single_action_space
        obs = _observations_of(result)
        described, self.act = single_fields(env, obs)
        self._form = ObservationForm(described, obs, self.n_envs)
        self.obs: Nested = self._form.fields
        first_obs = self._form.leaves(obs)
        self.device: torch.device = first_obs[0].device
        self._actions = ActionForm(self.act, self.device)
        self._infos = InfoForm(entries, self.n_envs, self.device) if entries.entries else None
        self.capturable = bool(getattr(env, "capturable", False))
        self._first_obs = [leaf.detach().clone() for leaf in first_obs]  # the next step may overwrite them
        progress.doing = "getting ready"

    @property
    def generators(self) -> list[torch.Generator]:
        """The generator that the environment draws from, if it has it as ``generator``."""
        generator = getattr(self._env, "generator", None)
        return [generator] if isinstance(generator, torch.Generator) else []

    @property
    def needs_lasts(self) -> bool:
        """Whether last observations have to be kept beside the rows: in NEXT_STEP they are in the rows."""
        return self._final and self.mode != "NEXT_STEP"

    def begin(self, row: TensorRow) -> None:
        """Write row 0 of the first fragment: the first observations, ``fin`` True, all else zero or False."""
        for leaf in (row.stepno, row.rew, row.terminated, row.truncated, row.valid, *row.act, *row.info):
            leaf.zero_()
        row.fin.fill_(True)
        torch._foreach_copy_(row.obs, self._first_obs)

    def step(
        self, now: TensorRow, then: TensorRow, last: list[Tensor], call: Call, acts: list[Tensor] | None = None
    ) -> bool:
        """Carry out the actions, and write row ``t + 1`` and the outcome of the transition to it.

        Parameters
        ----------
        now : TensorRow
            Row ``t``. Only read.
        then : TensorRow
            Row ``t + 1``. Its ``valid`` is True already, but for NEXT_STEP.
        last : list of tensors ``(n, ...)``
            Where to write the last observations, of which those of ended episodes are meaningful. May be empty.
        call : callable
            Calls the environment.
        acts : list of tensors ``(n, ...)``, optional
            The actions. None: they are in ``then.act`` already.

        Returns
        -------
        bool
            False if ``last`` is not empty, but the environment has given no last observations in this step.

        Raises
        ------
        ValueError
            The environment returned something that does not fit.
        """
        if acts:  # torch refuses an empty list, of an action space without numbers
            torch._foreach_copy_(then.act, acts)
        result = call(self._env.step, self._actions.given(then.act))
        obs, reward, terminated, truncated, infos = self._split(result)
        leaves = self._form.leaves(obs)
        then.rew.copy_(to_rewards(reward, self.n_envs, self.device))
        then.terminated.copy_(to_flags(terminated, self.n_envs, "terminated", self.device))
        then.truncated.copy_(to_flags(truncated, self.n_envs, "truncated", self.device))
        if self.mode == "NEXT_STEP":
            self._invalidate_resets(now, then)
        torch.logical_or(then.terminated, then.truncated, out=then.fin)
        torch.add(now.stepno, 1, out=then.stepno)
        then.stepno.masked_fill_(then.fin, 0)
        if self._infos is not None:
            recorded = then.valid if self.mode == "NEXT_STEP" else None
            self._infos.record(infos, then.info, recorded, then.fin if self.mode == "SAME_STEP" else None)
        given = self._write_last(last, leaves, infos) if last else True
        torch._foreach_copy_(then.obs, leaves)
        if self.mode == "DISABLED" and (not self._on_host or then.fin.any()):
            begun = self._form.leaves(_observations_of(call(self._reset, then.fin.clone())))
            for leaf, part in zip(then.obs, begun, strict=True):
                leaf.copy_(torch.where(wide(then.fin, leaf), part.to(leaf.dtype), leaf))
        return given

    def _reset(self, mask: Tensor) -> Any:
        return self._env.reset(options={"reset_mask": mask})

    def _split(self, result: Any) -> tuple[Any, Any, Any, Any, Mapping[str, Any]]:
        """Return the five values of a step, whichever API it has."""
        if not isinstance(result, tuple | list) or len(result) not in (4, 5):
            raise refused_vector_step(result, _STEP_VALUES)
        if len(result) == 4 and not isinstance(result[-1], Mapping | None):
            raise refused_vector_step(result, _STEP_VALUES)
        infos = infos_of(result[-1])
        if len(result) == 5:
            return result[0], result[1], result[2], result[3], infos
        obs, reward, dones, _ = result
        dones = to_flags(dones, self.n_envs, "dones", self.device)
        if "time_outs" not in infos:
            return obs, reward, dones, torch.zeros_like(dones), infos
        cut = to_flags(infos["time_outs"], self.n_envs, "infos['time_outs']", self.device)
        return obs, reward, dones & ~cut, dones & cut, infos

    def _invalidate_resets(self, now: TensorRow, then: TensorRow) -> None:
        """NEXT_STEP: write the parts that this step has reset as no transition."""
        reset = now.fin & now.valid
        torch.logical_not(reset, out=then.valid)
        for before, after in ((now.terminated, then.terminated), (now.truncated, then.truncated)):
            after.copy_(torch.where(reset, before, after))
        then.rew.masked_fill_(reset, 0.0)
        for before, after in zip(now.act, then.act, strict=True):
            after.copy_(torch.where(wide(reset, after), before, after))

    def _write_last(self, last: list[Tensor], leaves: list[Tensor], infos: Mapping[str, Any]) -> bool:
        """Write the last observations; return whether there are any."""
        if self.mode == "SAME_STEP":
            name = next((name for name in FINAL_NAMES if name in infos), None)
            if name is None:
                return False
            leaves = self._form.leaves(infos[name], f"infos[{name!r}]")
        torch._foreach_copy_(last, leaves)
        return True

    def own(self, envs: list[Any]) -> None:
        """Close these of the ``instances`` at :meth:`close`, too."""
        self._owned = envs

    def close(self) -> list[str]:
        """Close the environment if a factory has made it; return one sentence if that failed."""
        return close_environments(self._owned)


def _observations_of(result: Any) -> Nested:
    """Return the observations of what ``reset`` returned: observations and infos, or observations alone."""
    pair = isinstance(result, tuple) and len(result) == 2 and (result[1] is None or isinstance(result[1], Mapping))
    return result[0] if pair else result
