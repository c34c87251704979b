"""Settings of the runner."""

import re
from dataclasses import fields
from ipaddress import IPv6Address
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from libs.common.settings import ServiceSettings
from services.runner.compatibility import default_node, default_python
from services.runner.kubernetes.classes import JobClass
from services.runner.limits import JobLimits, Rules
from services.runner.sandbox.layers import Level

_MIB = 1024 * 1024
_GIB = 1024 * _MIB
_MAX_PROCESSES = 64
_LEAVING_SECONDS = 10.0
_AUTHORITY = re.compile(r"(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]+)?", re.ASCII | re.IGNORECASE)


class RunnerSettings(ServiceSettings):
    """What the environment tells the runner: variables that begin with STOWAGE_RUNNER_.

    The limits hold for every run whose job does not set its own.
    """

    model_config = SettingsConfigDict(env_prefix="STOWAGE_RUNNER_")

    port: int = Field(7103, ge=0, le=65535, description="Port to listen on.")
    registry_url: str = Field(description="URL of the registry.")
    service_token: SecretStr = Field(description="Token for the registry; needs the scope bundles:read.")

    concurrency: int = Field(
        4, ge=2, le=1000, description="Runs at the same time; 64 at most where they are processes of this machine."
    )
    lease_seconds: float = Field(30.0, ge=1, le=3600, description="Silence after which a runner counts as lost.")
    drain_seconds: float = Field(10.0, ge=0, description="How long runs may go on after SIGTERM.")
    scratch_dir: Path | None = Field(None, description="Where runs live; by default tmpfs where there is room.")
    platform_check: bool = Field(default=True, description="Refuse bundles whose native files can't run here.")
    quarantine_seconds: float = Field(
        5.0, ge=0, le=3600, description="How late a runner may learn that a version was quarantined."
    )
    secrets_dir: Path | None = Field(None, description="A directory with the secrets of jobs, one a file.")
    node: Path = Field(default_factory=default_node, description="The Node.js that runs bundles for Node.js.")
    python: Path = Field(default_factory=default_python, description="The Python that runs bundles for Python.")

    sandbox: Level | None = Field(None, description="The sandbox; by default the strongest that works.")
    sandbox_minimum: Level = Field(Level.LANDLOCK, description="The weakest sandbox to start with.")
    bubblewrap: Path | None = Field(None, description="The program bwrap, where it is not on the path.")
    allow_network: bool = Field(default=False, description="Give the network to bundles whose manifest asks for it.")
    warm: int | None = Field(None, ge=0, le=64, description="Interpreters of each kind that wait; as many as runs.")

    executor: Literal["process", "kubernetes"] = Field(
        "process", description="Where runs are executed: as processes of this machine, or as Jobs of a cluster."
    )
    advertised_url: str | None = Field(None, description="Where the pods of Jobs reach this runner.")
    kubernetes_config: Path | None = Field(None, description="A kubeconfig; in a cluster its service account.")
    kubernetes_namespace: str = Field("stowage-runs", description="Where Jobs are made.")
    kubernetes_image: str | None = Field(None, description="The runner's own image, for the pods of Jobs.")
    kubernetes_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        "IfNotPresent", description="When a node fetches the image."
    )
    kubernetes_service_account: str = Field("stowage-run", description="Of the pods; they are given no token for it.")
    kubernetes_start_seconds: float = Field(300.0, gt=0, le=86_400, description="How long a pod may take to begin.")
    kubernetes_classes: dict[str, JobClass] = Field(
        default_factory=dict, description="What a job may name as its nodeClass, as a JSON object."
    )
    kubernetes_default_class: str | None = Field(None, description="The class of jobs that name none.")
    kubernetes_cpus: float = Field(0.25, gt=0, description="Processors that a pod asks for.")
    kubernetes_overhead_bytes: int = Field(
        256 * _MIB, ge=64 * _MIB, description="Memory of a pod beyond its job's, for what executes it."
    )
    kubernetes_scratch: Literal["disk", "memory"] = Field("disk", description="What holds a pod's files.")

    timeout_seconds: float = Field(3600.0, gt=0, le=86_400, description="How long a handler may take.")
    abort_seconds: float = Field(3.0, ge=0, description="How long a job may take to end when it is asked to.")
    kill_seconds: float = Field(3.0, ge=0, description="How long after SIGTERM SIGKILL follows.")
    total_memory_bytes: int | None = Field(None, ge=16 * _MIB, description="Memory of all jobs that go at a time.")
    memory_bytes: int = Field(2 * _GIB, ge=16 * _MIB, description="Memory of a job's processes together.")
    processes: int = Field(512, ge=1, description="Processes of a job.")
    disk_bytes: int = Field(8 * _GIB, ge=0, description="Size of all files together that a job has written.")
    files: int = Field(100_000, ge=1, description="Files and directories that a job has made.")
    cpu_seconds: int = Field(14_400, ge=1, description="CPU time of each process of a job.")
    file_bytes: int = Field(8 * _GIB, ge=0, description="Size of any one file that a job writes.")
    open_files: int = Field(4096, ge=64, description="Open files of each process of a job.")

    retention_days: float | None = Field(None, gt=0, description="Days for which logs and outputs of runs are kept.")
    max_queued_runs: int = Field(100_000, ge=1, description="Runs that may be queued; more are refused with 429.")
    max_parameters_bytes: int = Field(256 * 1024, ge=2, description="Parameters of a run, as JSON.")
    max_result_bytes: int = Field(1 * _MIB, ge=2, description="Result of a run, as JSON.")
    max_log_bytes: int = Field(16 * _MIB, ge=1024, description="Log of one attempt; what comes after is dropped.")
    max_outputs: int = Field(10_000, ge=0, description="Files that a run may leave.")
    max_output_bytes: int = Field(8 * _GIB, ge=0, description="Size of all these files together.")

    @field_validator("advertised_url")
    @classmethod
    def _is_a_url(cls, value: str | None) -> str | None:
        return _with_brackets(value) if value is not None else None

    @model_validator(mode="after")
    def _fits_the_executor(self) -> Self:
        if self.executor == "process":
            if self.concurrency > _MAX_PROCESSES:
                raise ValueError(
                    f"CONCURRENCY is {self.concurrency}; {_MAX_PROCESSES} at most where EXECUTOR is process."
                )
        elif self.advertised_url is None or self.kubernetes_image is None:
            raise ValueError(
                "EXECUTOR is kubernetes, which needs ADVERTISED_URL, where pods reach this runner, and "
                "KUBERNETES_IMAGE, the runner's own image."
            )
        default = self.kubernetes_default_class
        if default is not None and default not in self.kubernetes_classes:
            known = ", ".join(sorted(self.kubernetes_classes)) or "it has none"
            raise ValueError(f"KUBERNETES_DEFAULT_CLASS is {default}, and no class of KUBERNETES_CLASSES: {known}.")
        return self

    @property
    def leaving_seconds(self) -> float:
        """How long it may take on SIGTERM until every run has ended or was given back."""
        return self.drain_seconds + self.abort_seconds + self.kill_seconds + _LEAVING_SECONDS

    def job_limits(self) -> JobLimits:
        """What a job may use that does not say otherwise."""
        return JobLimits(**{field.name: getattr(self, field.name) for field in fields(JobLimits)})

    def rules(self) -> Rules:
        """What every attempt is held to."""
        names = [field.name for field in fields(Rules) if field.name not in ("limits", "node_classes")]
        classes = sorted(self.kubernetes_classes) if self.executor == "kubernetes" else []
        return Rules(self.job_limits(), **{name: getattr(self, name) for name in names}, node_classes=tuple(classes))


def _with_brackets(url: str) -> str:
    """A URL of HTTP, without query. An address of IPv6 that has no brackets, as where a pod puts its own into
    `http://$(POD_IP):7103`, is given them. ValueError where it is no such URL.
    """
    try:
        parts = urlsplit(url)
        parts = parts._replace(netloc=_bracketed(parts.netloc))
        fits = (
            parts.scheme in ("http", "https")
            and _AUTHORITY.fullmatch(parts.netloc) is not None
            and parts.port != 0
            and not parts.query
            and not parts.fragment
        )
    except ValueError:  # the port is none, or what is in the brackets no address
        fits = False
    if not fits:
        raise ValueError(
            f"“{url}” is no URL that pods could reach this runner at. Write http:// or https://, host and port, such "
            "as http://10.0.0.1:7103 or http://[fd00::1]:7103"
        )
    return parts.geturl()


def _bracketed(authority: str) -> str:
    """Host and port of a URL. What may be an address with a port or without is taken for one with a port."""
    address, _, port = authority.rpartition(":")
    if port.isdecimal() and _is_ipv6(address):
        return f"[{address}]:{port}"
    return f"[{authority}]" if _is_ipv6(authority) else authority


def _is_ipv6(address: str) -> bool:
    try:
        IPv6Address(address)
    except ValueError:
        return False
    return True
