"""stub"""

from contextlib import AbstractAsyncContextManager

from services.runner.remote.place import Place
from services.runner.settings import RunnerSettings


def open_cluster(settings: RunnerSettings) -> AbstractAsyncContextManager[Place]:
    raise NotImplementedError
