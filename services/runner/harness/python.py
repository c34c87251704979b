"""Runs one handler: python -I -S python.py CONTROL_FD EVENT_FD

Control, a JSON object a line: first {entry, root, parameters, secrets, context, environment,
maxResultBytes}, later perhaps {abort: reason}.
Events, a JSON object a line: ready, started, log, progress, update, and at last result or error.
The process waits for its first control line before it imports anything of the bundle's. When the control channel
closes, the runner is gone, and the whole process group ends.
"""

import importlib
import importlib.util
import io
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Generator, Iterable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

# asyncio and inspect are imported where they are used: the process shall be waiting before the bundle is there.

MAX_EVENT_CHARACTERS = 64 * 1024


class Events:
    """The channel to the runner."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def send(self, **event: Any) -> None:
        self.write(json.dumps(event))

    def write(self, text: str) -> None:
        rest = memoryview(text.encode("utf-8", "backslashreplace") + b"\n")
        with self._lock:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]


class Signal:
    """Says that the job shall end."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.reason = ""

    @property
    def aborted(self) -> bool:
        """Whether it shall."""
        return self._event.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it shall, at most `timeout` seconds; whether it shall."""
        return self._event.wait(timeout)

    def throw_if_aborted(self) -> None:
        """Raise if it shall."""
        if self.aborted:
            raise RuntimeError(self.reason)

    def abort(self, reason: str) -> None:
        self.reason = reason
        self._event.set()


class Logger:
    """Callable, and with a method for each level."""

    def __init__(self, events: Events) -> None:
        self._events = events

    def __call__(self, message: object, fields: object = None) -> None:
        self._log("info", message, fields)

    def debug(self, message: object, fields: object = None) -> None:
        self._log("debug", message, fields)

    def info(self, message: object, fields: object = None) -> None:
        self._log("info", message, fields)

    def warn(self, message: object, fields: object = None) -> None:
        self._log("warning", message, fields)

    warning = warn

    def error(self, message: object, fields: object = None) -> None:
        self._log("error", message, fields)

    def _log(self, level: str, message: object, fields: object) -> None:
        self._events.send(type="log", level=level, message=cut(message), fields=plain(fields))


class Record(dict[str, Any]):
    """Facts, by item or by attribute."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Context(dict[str, Any]):
    """What a handler is given: by item the parameters, by attribute the names of the context.

    Items that are no parameters are looked for among the names of the context, attributes that are no such names among
    the parameters: so it serves handlers of one argument and of two.
    """

    def __init__(self, parameters: dict[str, Any], names: dict[str, Any]) -> None:
        super().__init__(parameters)
        self.__dict__.update(names)

    def __missing__(self, key: str) -> Any:
        try:
            return self.__dict__[key]
        except KeyError:
            raise KeyError(key) from None

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"neither the context nor the parameters have “{name}”") from None


class Secret(str):
    """The value of a secret. To await it gives it as well, as handlers for other runners do."""

    __slots__ = ()

    def __await__(self) -> Generator[None, None, str]:
        return str(self)
        yield


def main() -> None:
    control, events = int(sys.argv[1]), Events(int(sys.argv[2]))
    for descriptor in (control, int(sys.argv[2])):
        os.set_inheritable(descriptor, False)  # noqa: FBT003  # takes no keyword
    sys.argv[1:] = []
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    events.send(type="ready")
    lines = os.fdopen(control, "rb")
    start = json.loads(lines.readline() or runner_gone())
    abortion = Signal()
    threading.Thread(target=listen, args=(lines, abortion), daemon=True).start()
    try:
        code = run(start, events, abortion)
    except SystemExit:
        raise
    except BaseException as error:
        events.send(**failure(error))
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)  # threads that the handler left behind don't keep the run waiting


def listen(lines: Iterable[bytes], abortion: Signal) -> None:
    for line in lines:
        message = json.loads(line)
        if "abort" in message:
            abortion.abort(message["abort"])
    runner_gone()


def runner_gone() -> NoReturn:
    os.killpg(0, signal.SIGKILL)
    raise SystemExit


def run(start: dict[str, Any], events: Events, abortion: Signal) -> int:
    os.environ.update(start["environment"])
    handler = getattr(load(start["entry"], start["root"]), "handler", None)
    if not callable(handler):
        return refuse(events, "no_handler", "the entry defines no function “handler”. Define one.")
    parameters = start["parameters"]
    context = Context(parameters, names(start, events, abortion))
    arguments = (context, context) if wants_two(handler) else (context,)
    events.send(type="started")
    value = handler(*arguments)
    if hasattr(value, "__await__"):
        import asyncio

        value = asyncio.run(wait_for(value))
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        return refuse(events, "result_not_json", f"the handler returned what is not JSON: {error}")
    if len(text) > start["maxResultBytes"]:
        return refuse(
            events,
            "result_too_large",
            f"the result is {len(text)} bytes as JSON; the limit is {start['maxResultBytes']}. "
            "Write large data to files in output_dir.",
        )
    events.write('{"type":"result","value":' + text + "}")
    return 0


def refuse(events: Events, name: str, message: str) -> int:
    events.send(type="error", name=name, message=message)
    return 1


def load(entry: str, root: str) -> ModuleType:
    """The entry as a module; in a package, where there is one, so that relative imports work."""
    directory = Path(entry).parent
    name = Path(entry).stem
    while directory != Path(root) and (directory / "__init__.py").exists():
        name = f"{directory.name}.{name}"
        directory = directory.parent
    sys.path[0:0] = list(dict.fromkeys((str(directory), root)))
    sys.argv[0] = entry
    if "." in name:
        return importlib.import_module(name)
    # By its path: its name may be that of a module that Python has already loaded.
    spec = importlib.util.spec_from_file_location(name, entry)
    if spec is None or spec.loader is None:
        raise ImportError(f"{entry} is no Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def wants_two(handler: Callable[..., Any]) -> bool:
    """Whether a handler is of the older convention: parameters and context."""
    import inspect

    try:
        parameters = list(inspect.signature(handler).parameters.values())
    except (TypeError, ValueError):
        return False
    positional = [item for item in parameters if item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD)]
    if len(positional) >= 2:
        return positional[1].default is inspect.Parameter.empty or positional[1].name == "context"
    return any(item.kind is item.VAR_POSITIONAL for item in parameters)


def names(start: dict[str, Any], events: Events, abortion: Signal) -> dict[str, Any]:
    context = start["context"]

    def progress(fraction: float, message: object = None) -> None:
        number = float(fraction)
        events.send(
            type="progress",
            fraction=min(1.0, max(0.0, number)) if number == number else None,
            message=None if message is None else cut(message, 1000),
        )

    def update(fields: object) -> None:
        events.send(type="update", fields=plain(fields) or {})

    secrets = {name: Secret(value) for name, value in start["secrets"].items()}

    def resolve_secret(name: str) -> str:
        if name in secrets:
            return secrets[name]
        raise LookupError(
            f"secret “{cut(name, 100)}” is not declared: add its name to “secrets” in the definition of the job, which "
            f"declares {', '.join(secrets) or 'none'}. A run of a bundle without a job has none."
        )

    return {
        "parameters": start["parameters"],
        "inputs": context["inputs"],
        "run": Record(context["run"]),
        "logger": Logger(events),
        "signal": abortion,
        "progress": progress,
        "update": update,
        **dict.fromkeys(("output_dir", "outputDir"), context["outputDir"]),
        **dict.fromkeys(("work_dir", "workDir"), context["workDir"]),
        **dict.fromkeys(("resolve_secret", "resolveSecret"), resolve_secret),
    }


async def wait_for(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def cut(value: object, length: int = MAX_EVENT_CHARACTERS) -> str:
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= length else text[:length] + "…"


def plain(fields: Any) -> dict[str, Any] | None:
    """Fields as JSON; what is none, or too much of it, becomes text."""
    if fields is None:
        return None
    try:
        text = json.dumps(fields, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return {"value": cut(repr(fields))}
    if len(text) > MAX_EVENT_CHARACTERS:
        return {"value": cut(text)}
    return fields if isinstance(fields, dict) else {"value": fields}


def failure(error: BaseException) -> dict[str, Any]:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return {
        "type": "error",
        "name": type(error).__name__,
        "message": cut(str(error) or repr(error)),
        "stack": cut("".join(traceback.format_exception(type(error), error, trace)).rstrip()),
    }


if __name__ == "__main__":
    main()
