"""The form of the recurrent state: the fresh one shows it, and every later one is compared with it."""

from __future__ import annotations

from torch import Tensor

from .... import nested
from ....nested import Nested
from ..actor_spec import Form, first_of, form_of, same_kind

__all__ = ["HX_IS_WRITTEN_TO", "RecurrentForm"]

HX_IS_WRITTEN_TO = (
    "the actor returns as `hx` memory that it keeps and writes to at each step: a virtual step has changed the "
    "recurrent state, and so would the steps of other groups. Return a copy, as by `hx.clone()`; only the `hx` that a "
    "step is given may be changed in place."
)
"""The error for an actor that returns, say, ``self.h`` after ``self.h.copy_(...)``."""


class RecurrentForm:
    """The form of a fresh recurrent state, by which states are reset and recorded: later ones must have it too."""

    def __init__(self, fresh: Nested) -> None:
        """Note the form of a recurrent state, nested tensors ``(L, b, ...)``."""
        leaves, self._structure = nested.flatten(fresh)
        self._forms = list(map(form_of, leaves))
        self._by_name = _forms_by_name(fresh)

    def check(self, hx: Nested) -> list[Tensor]:
        """Check that a later recurrent state has this form, and return its leaves.

        Containers may differ in their types as long as the names of the leaves are the same, and dtypes in
        floating-point precision.

        Raises
        ------
        ValueError
            Leaves were added or are gone, a shape or the kind of a dtype has changed, or a leaf is no tensor.
        """
        leaves, structure = nested.flatten(hx)
        unchanged = structure == self._structure and all(isinstance(leaf, Tensor) for leaf in leaves)
        if unchanged and list(map(form_of, leaves)) == self._forms:
            return leaves
        now = _forms_by_name(hx)
        if now.keys() != self._by_name.keys() or not all(
            form is not None and form[0] == fresh[0] and same_kind(form[1], fresh[1])  # type: ignore[index]
            for form, fresh in zip(now.values(), self._by_name.values(), strict=True)
        ):
            raise ValueError(
                "the actor's recurrent state has changed its form: the first one, which a virtual step without `hx` "
                f"returned at the call, had {_in_words(self._by_name)}; now it has {_in_words(now)}. `step` must "
                "return the same structure, shapes and kinds of dtype each time, also where it is given no `hx`."
            )
        return leaves


def _forms_by_name(hx: Nested) -> dict[str, Form | None]:
    """Return the form of each leaf of a recurrent state by its name; None for a leaf that is no tensor."""
    named = zip(nested.names(hx, "hx"), nested.leaves(hx), strict=True)
    return {name: form_of(leaf) if isinstance(leaf, Tensor) else None for name, leaf in named}


def _in_words(forms: dict[str, Form | None]) -> str:
    told = [
        f"`{name}` that is no tensor" if form is None else f"`{name}` of shape {tuple(form[0])}, {form[1]}"
        for name, form in forms.items()
    ]
    return first_of(told) if told else "no tensors"
