"""What goes wrong with S3, in words that tell an operator what to do, and that repeat no secret."""

from __future__ import annotations

import re

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
    SSLError,
)

from registry.foreign_errors import one_line

ENDPOINT = "FLEXI_S3_ENDPOINT"
CHECKSUMS = "it may not know boto3's checksums: set AWS_REQUEST_CHECKSUM_CALCULATION=when_required"

_CREDENTIALS = "the store does not accept these credentials: check the access key, the secret key and their expiry"
_DENIED = "access denied: the credentials need s3:GetObject, s3:PutObject and s3:ListBucket here"
_REGION = "the bucket is in another region: set AWS_REGION to the bucket's"
_CLOCK = "this machine's clock is wrong: synchronise it"
_BUCKET = "this is no name of a bucket: correct the registry's address"
_BUSY = "the store asks for fewer requests at a time"
_ADVICE = {
    "NoSuchBucket": "the bucket does not exist: create it, or correct the registry's address",
    "InvalidBucketName": _BUCKET,
    "AccessDenied": _DENIED,
    "403": _DENIED,  # a HEAD is answered without a body, and so without a code
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "InvalidToken": _CREDENTIALS,
    "ExpiredToken": _CREDENTIALS,
    "TokenRefreshRequired": _CREDENTIALS,
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "RequestTimeTooSkewed": _CLOCK,
    "RequestExpired": _CLOCK,
}
_BUSY_CODES = {"SlowDown", "TooManyRequests", "Throttling", "ThrottlingException", "RequestLimitExceeded", "429"}
# What stores say that do not know the checksums which boto3 adds by default, nor the framing that carries them.
_CHECKSUM_CODES = {
    "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "BadDigest", "InvalidDigest", "MissingContentLength",
    "UnsupportedHeader", "IncompleteBody", "NotImplemented", "411", "501",
}  # fmt: skip
_CHECKSUM_WORDS = re.compile(
    r"checksum|trailer|aws-chunked|content-(sha256|md5|length|encoding)|transfer-encoding|header", re.I
)
_DEMANDS = re.compile(r"(content-md5|x-amz-checksum|checksum).*(required|missing|must)", re.I)


def code(error: object) -> str:
    """The error code of S3, empty where the error came from nearer."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def status(error: ClientError) -> int:
    """The HTTP status, 0 where there was none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def advice(error: Exception, plain: bool = False) -> str:
    """One line: what happened, and what to do about it. `plain`: the client sends no checksums of boto3's own."""
    match error:
        case NoCredentialsError() | PartialCredentialsError():
            return "no credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role"
        case CredentialRetrievalError():  # whose text is whatever a credential process printed
            return f"no credentials came from {one_line(error.kwargs['provider'])}: try it by hand"
        case NoRegionError():
            return "no region is set: set AWS_REGION to the bucket's (a store of your own takes us-east-1)"
        case ParamValidationError() if "bucket name" in str(error).lower():
            return _BUCKET
        case ClientError():
            return _refusal(error, plain)
        case IncompleteReadError():
            return f"the answer broke off ({one_line(error)}): try again, check the network"
        case SSLError():
            said = one_line(re.sub(r"^SSL validation failed for \S+ ", "", str(error)))
            advised = f"set AWS_CA_BUNDLE to the file of who signed its certificate, or check {ENDPOINT}, http or https"
            return f"no trusted connection ({said}): {advised}"
        case ConnectionError() | HTTPClientError():
            return f"no answer ({one_line(error)}): check the network, {ENDPOINT} or AWS_REGION, and that the store is up"
        case BotoCoreError():
            return one_line(error)
    # Whatever else boto3 raises, it stumbled over an answer that lacks, or has wrongly, what S3 always says.
    return f"what answers there does not speak S3 ({type(error).__name__}: {one_line(error)}): check {ENDPOINT}"


def _refusal(error: ClientError, plain: bool) -> str:
    """Of an answer with a status that is no success."""
    said, number = code(error), status(error)
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    name = f"{said} {number}" if said and not said.isdecimal() else str(number or said)
    if said in _BUSY_CODES:
        return f"{_BUSY} ({name}): try again later"
    if not plain and (said in _CHECKSUM_CODES or _blames_checksums(said, error)):
        return f"the store refuses the request ({one_line(error)}); {CHECKSUMS}"
    if plain and _DEMANDS.search(_message(error)):
        return f"the store wants checksums ({one_line(error)}): set AWS_REQUEST_CHECKSUM_CALCULATION=when_supported"
    if number >= 500 and number != 501:
        if said.isdecimal():  # what botocore makes of half an answer, too
            return f"the store has a fault of its own ({number}), or its answer broke off: try again, check {ENDPOINT}"
        return f"the store has a fault of its own ({name}): try again later, check {ENDPOINT}"
    if "html" in headers.get("content-type", ""):
        return f"a web page answers, no store ({name}): check {ENDPOINT} and the proxy (HTTPS_PROXY, NO_PROXY)"
    if said in _ADVICE:
        return _ADVICE[said]
    if 300 <= number < 400:
        place = one_line(str(headers.get("location", "elsewhere")).partition("?")[0])
        return f"the store sends us to {place} ({name}): set {ENDPOINT} to the address itself, http or https, and AWS_REGION"
    if said.isdecimal() or not said:
        return f"what answers there does not speak S3 ({name} {one_line(_message(error))}): check {ENDPOINT}, http or https"
    return f"the store refuses the request ({name}: {one_line(_message(error))}): check {ENDPOINT}, and what it means there"


def _blames_checksums(said: str, error: ClientError) -> bool:
    return said in {"InvalidArgument", "InvalidRequest"} and bool(_CHECKSUM_WORDS.search(_message(error)))


def _message(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Message", ""))
