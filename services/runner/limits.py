"""What a job may use."""

from dataclasses import dataclass, replace
from typing import Literal

from libs.common.models import Limits
from services.runner.process import ProcessLimits

Language = Literal["node", "python"]

_V8_RESERVE_BYTES = 768 * 1024 * 1024
"""Writable address space that V8 reserves for compiled code and thread stacks, and does not use."""


@dataclass(frozen=True, slots=True)
class JobLimits:
    """What the processes and files of a job may take.

    Memory, processes, disk and files count for all of them together; CPU time, the size of a file and open files for
    each.
    """

    memory_bytes: int
    processes: int
    disk_bytes: int
    files: int
    cpu_seconds: int
    file_bytes: int
    open_files: int

    def of_process(self, language: Language) -> ProcessLimits:
        """What the kernel is told of each process."""
        return ProcessLimits(
            data_bytes=self.memory_bytes + (_V8_RESERVE_BYTES if language == "node" else 0),
            processes=self.processes,
            file_bytes=min(self.file_bytes, self.disk_bytes),
            open_files=self.open_files,
            cpu_seconds=self.cpu_seconds,
        )


@dataclass(frozen=True, slots=True)
class Rules:
    """What a runner holds every attempt to. Its `limits` and time hold where the job does not set its own.

    `node_classes` are the names that a job may use.
    """

    limits: JobLimits
    timeout_seconds: float
    abort_seconds: float
    kill_seconds: float
    platform_check: bool
    allow_network: bool
    max_result_bytes: int
    max_outputs: int
    max_output_bytes: int
    node_classes: tuple[str, ...] = ()

    def limits_of(self, given: Limits) -> JobLimits:
        """What a job may use that sets these limits."""
        return replace(self.limits, **given.model_dump(exclude={"timeout_seconds", "node_class"}, exclude_none=True))
