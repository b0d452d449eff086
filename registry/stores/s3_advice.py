"""What goes wrong with S3, in words that tell an operator what to do, and that repeat no secret."""

from __future__ import annotations

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.parsers import ResponseParserError

ENDPOINT = "FLEXI_S3_ENDPOINT"
FAULTS = (ClientError, BotoCoreError, ResponseParserError, KeyError)  # the last when an answer lacks what S3 always says

_CREDENTIALS = "the store does not accept these credentials: check the access key, the secret key and their expiry"
_DENIED = "access denied: the credentials need s3:GetObject, s3:PutObject and s3:ListBucket here"
_REGION = "the bucket is in another region: set AWS_REGION to the bucket's"
_CLOCK = "this machine's clock is wrong: synchronise it"
_ADVICE = {
    "NoSuchBucket": "the bucket does not exist: create it, or correct the registry's address",
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


def code(error: object) -> str:
    """The error code of S3, empty where the error came from nearer."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def status(error: ClientError) -> int:
    """The HTTP status, 0 where there was none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def advice(error: Exception) -> str:
    """One line: what happened, and what to do about it."""
    match error:
        case NoCredentialsError() | PartialCredentialsError():
            return "no credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role"
        case CredentialRetrievalError():  # whose text is whatever a credential process printed
            return f"no credentials came from {error.kwargs['provider']}: try it by hand"
        case ClientError() if status(error) >= 500 and code(error).isdecimal():  # what botocore makes of half an answer, too
            return f"the store has a fault of its own ({status(error)}), or its answer broke off: try again, check {ENDPOINT}"
        case ClientError() if status(error) >= 500:
            return f"the store has a fault of its own ({code(error)} {status(error)}): try again later, check {ENDPOINT}"
        case ClientError():
            return _ADVICE.get(code(error)) or _one_line(error)
        case IncompleteReadError():
            return f"the answer broke off ({_one_line(error)}): try again, check the network"
        case ConnectionError() | HTTPClientError():
            return f"no answer ({_one_line(error)}): check the network, {ENDPOINT} and that the store is up"
        case ResponseParserError() | KeyError():
            return f"what answers there does not speak S3 ({_one_line(error)}): check {ENDPOINT}"
    return _one_line(error)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
