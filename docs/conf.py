"""Configuration of the guide and the reference: ``python -m sphinx -W docs build/docs``.

The reference is built from the docstrings. With ``-W`` warnings are errors. There is a warning for each public name
that has no docstring or no entry in the reference, and for each cross-reference without a target.
"""

import importlib
import pkgutil
import re

from numpydoc.xref import DEFAULT_LINKS
from sphinx.util import logging

import rlplay.engine.rollout

project = "rlplay"
version = rlplay.__version__
copyright = "the rlplay authors"

extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.viewcode", "numpydoc"]
templates_path = ["templates"]
exclude_patterns = ["templates"]
html_theme = "furo"
html_title = f"rlplay {version}"
html_copy_source = False

nitpicky = True
add_module_names = False
autodoc_default_options = {"members": True, "imported-members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autosummary_ignore_module_all = False
numpydoc_show_class_members = False
numpydoc_xref_param_type = True
numpydoc_xref_ignore = "all"  # links only what the aliases name
DEFAULT_LINKS.clear()  # they lead to pages of Python and NumPy, which are not loaded
numpydoc_xref_aliases = {
    "BaseActorModule": "rlplay.engine.core.BaseActorModule",
    "Episode": "rlplay.engine.core.Episode",
    "Examiner": "rlplay.engine.rollout.evaluate.Examiner",
    "Feed": "rlplay.engine.feed.feed.Feed",
    "Fragment": "rlplay.engine.core.Fragment",
    "Trace": "rlplay.engine.feed.timeline.Trace",
    "Unrolled": "rlplay.algo.Unrolled",
}

RETURNED = {"Feed", "EpisodeFeed", "Examiner", "Trace"}
"""Classes that users get from functions: their constructors are not shown."""

PUBLIC = {
    "rlplay",
    "rlplay.engine",
    *(name for _, name, _ in pkgutil.iter_modules(rlplay.engine.rollout.__path__, "rlplay.engine.rollout.")),
    "rlplay.algo",
    "rlplay.replay",
    "rlplay.zoo.actors",
    "rlplay.zoo.envs",
    "rlplay.checkpoint",
    "rlplay.sampling",
    "rlplay.plotting",
    "rlplay.testing",
}
"""Modules whose every name in ``__all__`` must be in the reference. The index lists some more modules."""

for name in rlplay.engine.__all__:  # these names are loaded at first use, and autodoc does not load them
    setattr(rlplay.engine, name, getattr(rlplay.engine, name))


def setup(app):
    """Hide constructors that users do not call, resolve links to pages, and check the reference at the end."""
    app.connect("autodoc-process-signature", hide_constructor)
    app.connect("source-read", resolve_links_to_files)
    app.connect("env-check-consistency", warn_of_missing_names)


def resolve_links_to_files(app, docname, source):
    """Replace links to files (``<masks.rst>``), which a code host understands, by references to pages."""
    source[0] = re.sub(r"`([^`<]+) <(\w+)\.rst>`__", r":doc:`\1 <\2>`", source[0])


def hide_constructor(app, what, name, obj, options, signature, return_annotation):
    """Return an empty signature for a class whose objects are returned by functions."""
    if what == "class" and obj.__name__ in RETURNED:
        return "", None
    return signature, return_annotation


def warn_of_missing_names(app, env):
    """Warn of public names without a docstring, which autodoc leaves out, and of public modules without a page.

    A constant needs no entry of its own if the docstring of its module names it.
    """
    python = env.get_domain("py")
    documented = {*python.objects, *python.modules}
    for name in sorted(PUBLIC):
        module = importlib.import_module(name)
        constants = {e for e in module.__all__ if isinstance(getattr(module, e), str | tuple)}
        named = {constant for constant in constants if f"``{constant}``" in module.__doc__}
        for missing in {name, *(f"{name}.{entry}" for entry in set(module.__all__) - named)} - documented:
            logging.getLogger(__name__).warning("%s is public, but has no docstring, or no page", missing)
