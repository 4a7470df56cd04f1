"""OpenVINO 2026.4: `openvino.compile_model` makes a `Core` for each call.

The CPU plugin gives the thread that loads it a stack for signals, which goes with the `Core` and
the models that it compiled. Where several go in another order than the last one first, the thread
keeps a stack that is gone, and the next Ctrl-C, or Jupyter's button for it, ends the process. No
issue of theirs is known here. It may go when a process outlives that; `tests/test_upstream.py`
tells.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import openvino as ov

Options = Callable[[ov.Model, Mapping[str, Any]], dict[str, Any]]


def share_core(core: Callable[[], ov.Core], options_for: Options) -> None:
    """Let `openvino.compile_model` use what `core` returns, for the whole process.

    Notebooks and NNCF call it too. `options_for` returns the options with which a model is
    compiled, from those that the caller has.
    """

    @functools.wraps(ov.compile_model)
    def compile_model(
        model: Any, device_name: str = "AUTO", config: Mapping[str, Any] | None = None
    ) -> ov.CompiledModel:
        options = dict(config or {})
        if not isinstance(model, ov.Model):  # a new `Core` knows extensions imported since
            model = ov.Core().read_model(model, config=options)
        return core().compile_model(model, device_name, options_for(model, options))

    ov.compile_model = compile_model
