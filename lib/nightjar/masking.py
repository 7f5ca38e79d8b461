"""Secrets in text that people and log collectors see: credentials in URIs and values of keys named so.

Roots like s3://KEY:SECRET@bucket and Spark settings may hold them, and error messages repeat what they were
given.
"""

from __future__ import annotations

import re

_NAMES = r"(?:secret|passw|credential|token|access[._-]?key|api[._-]?key|account[._-]?key|signature|\bsig\b)"
_MASKS = (
    # s3://KEY:SECRET@bucket: what stands before the @ of a URI; a secret may hold a slash, a port does not
    (re.compile(r"(://)(?:[^/\s@'\"]+|[^/\s@:'\"]+:(?!\d+/)[^\s@'\"]+)@"), r"\1***@"),
    # spark.hadoop.fs.s3a.secret.key=…, ?sig=…; a number alone is a setting, such as token_budget=512
    (re.compile(rf"([\w.\-]*{_NAMES}[\w.\-]*=)(?!\d+\b)[^\s'\",;&)]+", re.IGNORECASE), r"\1***"),
    # {'fs.s3a.secret.key': '…'}
    (re.compile(rf"(['\"][\w.\-]*{_NAMES}[\w.\-]*['\"]\s*:\s*)(['\"]).*?\2", re.IGNORECASE), r"\1\2***\2"),
)


def masked(text: str) -> str:
    """The text with *** in place of what looks like a secret."""
    for pattern, mask in _MASKS:
        text = pattern.sub(mask, text)
    return text
