"""What an S3 endpoint, or the way to it, refuses: our errors, in sentences that show nothing of what was sent."""

from __future__ import annotations

from botocore import exceptions

from workers.errors import BadInput, LoginFailed, NoSpace, NotFound, StoreUnreachable
from workers.settings import BucketSettings


class Unmet(Exception):
    """A condition of a write does not hold."""

    def __init__(self, *, repeated: bool, retry: bool) -> None:
        super().__init__("a condition of a write does not hold")
        #: the request was sent more than once: it may have been met by ourselves
        self.repeated = repeated
        #: somebody else wrote at the same moment: that it holds or not is not known yet
        self.retry = retry


_LOGIN = {
    "AccessDenied": "may not do that: give this access key the right to list, read, write and delete objects there",
    "InvalidAccessKeyId": "does not know this access key: check access_key_file or access_key_env",
    "SignatureDoesNotMatch": "does not accept the secret of this access key: check access_key_file or access_key_env",
    "ExpiredToken": "says that this access key has expired: renew it",
    "InvalidToken": "does not accept this session token: renew the access key",
    "TokenRefreshRequired": "says that this access key has expired: renew it",
    "RequestTimeTooSkewed": "refuses this machine's clock: set it by NTP (requests are signed with the time)",
}
_FULL = {"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage", "507"}
_GONE = {"NoSuchKey", "NoSuchUpload", "NotFound", "404"}
_REACH = "; the run goes on once it does again"


def told(err: Exception, where: str, settings: BucketSettings) -> Exception:
    """What to raise instead of `err`."""
    endpoint = settings.endpoint or "AWS"
    if isinstance(err, exceptions.ClientError):
        return _answered(err, where, settings, endpoint)
    if isinstance(err, (exceptions.NoCredentialsError, exceptions.PartialCredentialsError)):
        return LoginFailed(
            f"{where}: there is no access key for {endpoint}: set access_key_file or access_key_env of the store"
        )
    if isinstance(err, exceptions.SSLError):
        return LoginFailed(
            f"{where}: the certificate of {endpoint} is not trusted: name its CA in ca_file of the store"
        )
    if isinstance(err, (exceptions.ParamValidationError, exceptions.NoRegionError, exceptions.InvalidRegionError)):
        return BadInput(
            f"{where}: the bucket's name, region or endpoint is not possible; check the store's s3 settings"
        )
    if isinstance(err, ValueError) and not isinstance(err, OSError):
        return BadInput(f"{where}: {endpoint} is not an address of an endpoint, such as https://s3.example.com:9000")
    return StoreUnreachable(f"{where}: {endpoint} does not answer ({type(err).__name__}){_REACH}")


def busy(where: str, settings: BucketSettings) -> StoreUnreachable:
    return StoreUnreachable(
        f"{where}: {settings.endpoint or 'AWS'} says each time that others write it just then{_REACH}"
    )


def _answered(err: exceptions.ClientError, where: str, settings: BucketSettings, endpoint: str) -> Exception:
    code = str(err.response.get("Error", {}).get("Code", ""))
    about = err.response.get("ResponseMetadata", {})
    status = int(about.get("HTTPStatusCode", 0))
    if code == "NoSuchBucket":
        return NotFound(
            f"there is no bucket {settings.bucket} at {endpoint}: make it, or check the store's s3 settings"
        )
    if code in _GONE or status == 404:
        return FileNotFoundError(where)
    if status in (412, 409):
        return Unmet(repeated=bool(about.get("RetryAttempts")), retry=status == 409)
    if code in _FULL or status == 507:
        return NoSpace(
            f"{where}: {endpoint} has no room for it ({code}): raise the quota, or lower what `keep` of the groups "
            f"keeps and run `understudy prune`. Nothing that was in the store is lost, and the run can go on afterwards"
        )
    if code in _LOGIN:
        return LoginFailed(f"{where}: {endpoint} {_LOGIN[code]}")
    if status in (401, 403):
        return LoginFailed(f"{where}: {endpoint} {_LOGIN['AccessDenied']}")
    if status in (301, 307) or code == "AuthorizationHeaderMalformed":
        return BadInput(f"{where}: the bucket is in another region than the store's s3 settings say ({code})")
    if status == 501 or code == "NotImplemented":
        return BadInput(f"{where}: {endpoint} lacks something that a store needs ({code}); use another endpoint")
    return StoreUnreachable(f"{where}: {endpoint} cannot do it now ({code or status}){_REACH}")
