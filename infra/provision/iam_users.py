"""Users and policies of SeaweedFS, by the IAM API that it answers beside S3 (`-s3.iam.readOnly=false`).

The requests are those of AWS's IAM. That a key is given with its secret is SeaweedFS's own, and AWS's endpoint is
another one than S3's: there users are made by whatever makes them.
"""

import json
import os
import re
from http import HTTPStatus
from urllib.parse import urlencode

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as Signer
from botocore.exceptions import BotoCoreError
from botocore.httpsession import URLLib3Session

from infra.provision.policies import Policy
from infra.provision.server import Credentials, ProvisionError, Server, works

_TYPE = "application/x-www-form-urlencoded; charset=utf-8"
_CODE = re.compile(r"<Code>([^<]{1,100})</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{1,500})</Message>")
_KEY = re.compile(r"[A-Za-z0-9]{4,128}")


class IamUsers:
    """The users of one server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._signer = SigV4Auth(
            Signer(server.administrator.access_key, server.administrator.secret_key), "iam", server.region
        )

    def may_be_managed(self) -> bool:
        """Whether the server has this API, and the administrator's keys may use it."""
        status, answer = self._ask("ListUsers")
        return status == HTTPStatus.OK and "<ListUsersResponse" in answer

    def ensure(self, name: str, credentials: Credentials, policy: Policy) -> None:
        """Make or renew the user: from then on it has these keys and this policy."""
        if not _KEY.fullmatch(credentials.access_key):
            raise ProvisionError(f"the access key {credentials.access_key} must be 4 to 128 letters and digits")
        self._order("CreateUser", UserName=name, unless="EntityAlreadyExists")
        self._order("PutUserPolicy", UserName=name, PolicyName=name, PolicyDocument=json.dumps(policy))
        key = {"UserName": name, "AccessKeyId": credentials.access_key}
        made = self._order(
            "CreateAccessKey", **key, SecretAccessKey=credentials.secret_key, unless="EntityAlreadyExists"
        )
        if not made and not works(self._server, credentials):  # its secret is another one
            self._order("DeleteAccessKey", **key)
            self._order("CreateAccessKey", **key, SecretAccessKey=credentials.secret_key)

    def remove(self, name: str, credentials: Credentials) -> None:
        """Remove the user, its keys and its policy."""
        self._order("DeleteAccessKey", UserName=name, AccessKeyId=credentials.access_key)
        self._order("DeleteUserPolicy", UserName=name, PolicyName=name)
        self._order("DeleteUser", UserName=name)

    def _order(self, action: str, *, unless: str = "", **parameters: str) -> bool:
        """Have something done; False where the server says `unless`."""
        status, answer = self._ask(action, **parameters)
        if status == HTTPStatus.OK:
            return True
        code, message = _CODE.search(answer), _MESSAGE.search(answer)
        if unless and code and code.group(1) == unless:
            return False
        reason = message.group(1) if message else f"status {status}"
        raise ProvisionError(
            f"{self._server.endpoint} refused {action} of {parameters['UserName']}: {reason}. SeaweedFS allows it "
            "where it was started with -s3.iam.readOnly=false."
        )

    def _ask(self, action: str, **parameters: str) -> tuple[int, str]:
        body = urlencode({"Action": action, "Version": "2010-05-08", **parameters})
        request = AWSRequest("POST", f"{self._server.endpoint.rstrip('/')}/", {"Content-Type": _TYPE}, body)
        self._signer.add_auth(request)
        session = URLLib3Session(verify=os.environ.get("AWS_CA_BUNDLE") or True)  # type: ignore[arg-type]  # stubs know no path
        try:
            answer = session.send(request.prepare())
        except BotoCoreError as error:
            raise ProvisionError(f"{self._server.endpoint} can't be reached: {error}") from error
        finally:
            session.close()
        return answer.status_code, answer.content.decode("utf-8", "replace")
