"""What reads requests and talks to Postgres: releases with known holes, and a lenient parser of HTTP, are refused."""

from __future__ import annotations

import re
from importlib.metadata import version

from aiohttp import http_parser

RELEASES_MIN = {"aiohttp": (3, 14, 5), "asyncpg": (0, 32)}


class UnfitLibrary(Exception):
    """A node must not run with a library as it is installed; the message says why."""


def check_libraries() -> None:
    """Raise ``UnfitLibrary`` where what is installed is not what a node is to run with."""
    for name, least in RELEASES_MIN.items():
        found = version(name)
        if tuple(map(int, re.findall(r"\d+", found)[: len(least)])) < least:
            raise UnfitLibrary(f"{name} {found} is too old: {'.'.join(map(str, least))} is needed; install it anew")
    # Two parsers in one cluster, or one more lenient than a balancer's, could read one request in two ways.
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        raise UnfitLibrary("aiohttp has no C parser here: install its wheel, and unset AIOHTTP_NO_EXTENSIONS")
