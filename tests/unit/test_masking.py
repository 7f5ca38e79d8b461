"""Secrets in what people and logs see are masked; everything else stays as it is."""

from __future__ import annotations

import pytest

from nightjar.masking import masked


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("under s3://AKIA:abc/def@bucket/x", "under s3://***@bucket/x"),
        ("gs://bucket/night@2 is gone", "gs://bucket/night@2 is gone"),
        ("hdfs://user@host:8020/x", "hdfs://***@host:8020/x"),
        ("spark.hadoop.fs.s3a.secret.key=abc spark.x=1", "spark.hadoop.fs.s3a.secret.key=*** spark.x=1"),
        ("abfs://c/x?sv=1&sig=a%2Fb&se=2", "abfs://c/x?sv=1&sig=***&se=2"),
        ("PASSWORD=hunter2, next", "PASSWORD=***, next"),
        ("(got {'fs.s3a.access.key': 'AKIA 1', 'b': 'c'})", "(got {'fs.s3a.access.key': '***', 'b': 'c'})"),
        ("token_budget=512", "token_budget=512"),
        ("tokens: 1,234 tokens/s, design=x", "tokens: 1,234 tokens/s, design=x"),
        ("http://head:8265/jobs of me@home", "http://head:8265/jobs of me@home"),
        ("scene shop: no file matches a/*.csv", "scene shop: no file matches a/*.csv"),
    ],
)
def test_masked(text: str, shown: str) -> None:
    assert masked(text) == shown
