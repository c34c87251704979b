"""What can be wrong with the bucket, in our words."""

import contextlib
from collections.abc import Iterator

from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from libs.common.errors import StowageError, Unavailable

_ABSENT = {"404", "NoSuchKey", "NoSuchUpload", "NotFound"}
_PRESENT = {"412", "PreconditionFailed", "ConditionalRequestConflict"}
_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403"}


class ObjectMissing(StowageError):
    """No object has this key."""

    kind = "object-missing"


class ObjectExists(StowageError):
    """An object has this key already, and was not to be replaced."""

    kind = "object-exists"


class ObjectStoreUnavailable(Unavailable):
    """The S3 server can't be reached, refuses our credentials, or broke off."""

    kind = "object-store-unavailable"


@contextlib.contextmanager
def translated(action: str, key: str) -> Iterator[None]:
    """Raise botocore's and urllib3's errors as ours; `action` and `key` complete the sentence “could not …”."""
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _ABSENT:
            raise ObjectMissing(f"the bucket has no object {key}", key=key) from error
        if code in _PRESENT:
            raise ObjectExists(f"the bucket has an object {key} already", key=key) from error
        if code in _DENIED:
            raise ObjectStoreUnavailable(
                f"the S3 server refused to {action} {key}: {code}. Check the S3 credentials."
            ) from error
        raise ObjectStoreUnavailable(f"the S3 server could not {action} {key}: {code or error}") from error
    except (BotoCoreError, HTTPError, OSError) as error:
        raise ObjectStoreUnavailable(
            f"the S3 server can't be reached to {action} {key}: {type(error).__name__}"
        ) from error


@contextlib.contextmanager
def while_uploading(key: str) -> Iterator[None]:
    """The same for parts of an upload. One that is gone was ended by a sweep or by the server: it may be made again."""
    try:
        with translated("write", key):
            yield
    except ObjectMissing as error:
        raise ObjectStoreUnavailable(f"the upload of {key} was ended while it went on. Do it again.") from error
