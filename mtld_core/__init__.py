"""MTLD: a workbench for small video models. `open_run(path)` gives a trained system back.

Nothing heavy is imported here: torch loads when the first model or dataset is opened.
"""

__version__ = "0.1.0"
__all__ = ["open_run"]


def __getattr__(name):
    if name == "open_run":
        from mtld_core.systems.opening import open_run

        return open_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
