"""A user for each service, by whichever API the server has for that."""

from collections.abc import Callable, Mapping
from typing import Protocol

from infra.provision.iam_users import IamUsers
from infra.provision.minio_users import MinioUsers
from infra.provision.policies import Policy, policy_of
from infra.provision.server import Credentials, ProvisionError, Server, until_usable


class Users(Protocol):
    """How users are made on one kind of server."""

    def may_be_managed(self) -> bool:
        """Whether the server has this API, and the administrator's keys may use it."""
        ...

    def ensure(self, name: str, credentials: Credentials, policy: Policy) -> None:
        """Make or renew the user: from then on it has these keys and this policy."""
        ...

    def remove(self, name: str, credentials: Credentials) -> None:
        """Remove the user, its keys and its policy."""
        ...


_KINDS: dict[str, Callable[[Server], Users]] = {"MinIO's admin API": MinioUsers, "IAM API": IamUsers}


def users_of(server: Server) -> Users:
    """How users are made on this server; raises ProvisionError where it has no way that is known."""
    for kind in _KINDS.values():
        users = kind(server)
        if users.may_be_managed():
            return users
    raise ProvisionError(
        f"{server.endpoint} has no {' and no '.join(_KINDS)} that these keys may use. Make a user for each service "
        "there, with the policies that python -m infra.provision --policies prints, and set STOWAGE_S3_USERS=none."
    )


def ensure_users(server: Server, services: Mapping[str, Credentials]) -> None:
    """Give each of the services a user of its own with its policy, and wait until its keys work."""
    if len({credentials.access_key for credentials in services.values()}) < len(services):
        raise ProvisionError("two services have the same access key; each needs a user of its own")
    users = users_of(server)
    for service, credentials in services.items():
        name = f"{server.bucket}-{service}"
        users.ensure(name, credentials, policy_of(service, server.bucket))
        until_usable(server, name, credentials)
