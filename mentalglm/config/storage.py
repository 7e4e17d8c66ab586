"""How object storage is reached. Credentials never stand in a config: the usual AWS variables, files and roles do."""

import os
import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator

from mentalglm.config.base import ConfigModel


def _without_credentials(address: str) -> str:
    if re.match(r"[^/]*://[^/]*@", address):
        raise ValueError("must hold no user name or password; set AWS_ACCESS_KEY_ID or AWS_PROFILE, or use a role")
    return address


StorageAddress = Annotated[str, Field(min_length=1), AfterValidator(_without_credentials)]
"""A path, file:// or s3:// address. One with a key in it would be written into the run's folder, so it is refused."""


def place_of(uri: str) -> tuple[str, ...]:
    """An address as the parts of its path: the same for `a/` and `./a`, and a folder is seen to lie in another."""
    if uri.lower().startswith("s3://"):
        return ("s3:", *(part for part in uri[5:].split("/") if part))
    return Path(os.path.abspath(Path(uri.removeprefix("file://")).expanduser())).parts  # noqa: PTH100 - it need not exist


class S3Config(ConfigModel):
    """The S3 service that s3:// addresses mean, and how patiently it is asked."""

    endpoint: StorageAddress | None = None
    """Address of a service other than AWS, like https://minio.lab:9000. Default: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL,
    else AWS."""
    region: str | None = None
    """Default: AWS_REGION or AWS_DEFAULT_REGION, else the profile's."""
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    """Where the bucket stands in an address: in the path or in the host. `auto`: in the path of an `endpoint`, in the
    host on AWS."""
    sse_kms_key: str | None = Field(default=None, min_length=1)
    """Id, alias or ARN of the KMS key that everything written is encrypted with. Default: what the bucket does by
    itself. A server that does not obey ends the run."""
    max_attempts: int = Field(default=10, ge=1, le=20)
    """Attempts of a request that meets a time-out, a connection error, throttling or a 5xx; 10 last about a minute."""
    connect_timeout_s: float = Field(default=10, gt=0)
    read_timeout_s: float = Field(default=60, gt=0)
    """Longest silence of the service."""

    @field_validator("endpoint")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        address = urlsplit(value)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError("is no http(s) address; write it like https://minio.lab:9000")
        if address.path.strip("/") or address.query or address.fragment:
            raise ValueError("must be a host and a port alone; buckets are named in the s3:// addresses")
        return value.rstrip("/")
