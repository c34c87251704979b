"""Users and policies of MinIO, and of its forks, by its admin API. There an access key is the name of its user."""

import contextlib
from collections.abc import Iterator

import urllib3
from minio import MinioAdmin
from minio.credentials.providers import StaticProvider
from minio.error import MinioAdminException

from infra.provision.policies import Policy
from infra.provision.server import Credentials, ProvisionError, Server, connections


class MinioUsers:
    """The users of one server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        provider = StaticProvider(server.administrator.access_key, server.administrator.secret_key)
        self._admin = MinioAdmin(
            endpoint=server.host,
            credentials=provider,
            region=server.region,
            secure=server.secure,
            http_client=connections(),
        )

    def may_be_managed(self) -> bool:
        """Whether the server has this API, and the administrator's keys may use it."""
        try:
            self._admin.user_list()
        except MinioAdminException:  # other servers take its path for a bucket's, which is not there or not ours
            return False
        except urllib3.exceptions.HTTPError as error:
            raise ProvisionError(f"{self._server.endpoint} can't be reached: {error}") from error
        return True

    def ensure(self, name: str, credentials: Credentials, policy: Policy) -> None:
        """Make or renew the user: from then on it has these keys, and this policy and no other."""
        with self._explained("make", credentials):
            self._admin.policy_add(name, policy=policy)
            self._admin.user_add(credentials.access_key, credentials.secret_key)
            self._admin.policy_set(name, user=credentials.access_key)

    def remove(self, name: str, credentials: Credentials) -> None:
        """Remove the user, its keys and its policy."""
        with self._explained("remove", credentials):
            self._admin.user_remove(credentials.access_key)
            self._admin.policy_remove(name)

    @contextlib.contextmanager
    def _explained(self, doing: str, user: Credentials) -> Iterator[None]:
        try:
            yield
        except (MinioAdminException, urllib3.exceptions.HTTPError) as error:
            raise ProvisionError(
                f"{self._server.endpoint} did not {doing} the user {user.access_key}: {error}"
            ) from error
