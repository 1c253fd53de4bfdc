"""The reference documentation: ``python -m sphinx -W docs build/docs`` makes it from the docstrings.

A warning is an error, and it is a warning if a public name has no docstring, if it is not in the reference, or if a
cross-reference leads nowhere.
"""

import importlib
import pkgutil

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

PUBLIC = {
    "rlplay",
    "rlplay.engine",
    *(name for _, name, _ in pkgutil.iter_modules(rlplay.engine.rollout.__path__, "rlplay.engine.rollout.")),
    "rlplay.algo",
    "rlplay.replay",
    "rlplay.zoo.actors",
    "rlplay.zoo.envs",
    "rlplay.sampling",
    "rlplay.plotting",
    "rlplay.testing",
}
"""The modules all of whose ``__all__`` is public. The index has some more pages."""

for name in rlplay.engine.__all__:  # these are loaded when they are asked for; autodoc does not ask
    setattr(rlplay.engine, name, getattr(rlplay.engine, name))


def setup(app):
    """Have the reference looked over when all of it has been read."""
    app.connect("env-check-consistency", see_that_all_is_there)


def see_that_all_is_there(app, env):
    """Warn of public names without a docstring, which autodoc leaves out, and of public modules without a page.

    Constants have no docstrings of their own: that of their module names them.
    """
    python = env.get_domain("py")
    there = {*python.objects, *python.modules}
    for name in sorted(PUBLIC):
        module = importlib.import_module(name)
        named = {e for e in module.__all__ if isinstance(vars(module)[e], str | tuple) and f"``{e}``" in module.__doc__}
        for missing in {name, *(f"{name}.{entry}" for entry in set(module.__all__) - named)} - there:
            logging.getLogger(__name__).warning("%s is public, but has no docstring, or no page", missing)
