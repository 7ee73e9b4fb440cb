"""One call to the cluster, with its failures as sentences for a person."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import click

from repo_node.cli.connection import ConnectionOptions, find_endpoint, start_command
from repo_node.cli.wording import printable
from repo_node.client.errors import BadAnswer, ClientError, Unreachable
from repo_node.client.rest import Client, Endpoint
from repo_node.client.retry import RetryPolicy

TEXT_BYTES_MAX = 4_096
CALL_RETRY = RetryPolicy(repeats_max=2)


def run_call(given: ConnectionOptions, call: Callable[[Client], Awaitable[Any]], *keys: str) -> Any:
    """Return what ``call`` gets from the cluster that the options name: an object that has ``keys``, where given.

    Failures become sentences and status 1. Raises ``click.ClickException``.
    """
    endpoint = find_endpoint(given)

    async def run() -> Any:
        async with Client(endpoint, retry=CALL_RETRY, on_wait=say_wait) as client:
            return check_answer(endpoint, await call(client), keys)

    try:
        return asyncio.run(run())
    except ClientError as error:
        raise failure_of(error, given, endpoint) from None


async def say(client: Client, method: str, url_path: str, body: Any = None) -> str:
    """Return the text that a call answers, to which ``body`` goes as JSON."""
    headers = {} if body is None else {"Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    async with client.request(method, url_path, headers=headers, data=data) as response:
        return (await response.content.read(TEXT_BYTES_MAX)).decode("utf-8", "replace").strip()


def failure_of(error: ClientError, given: ConnectionOptions, endpoint: Endpoint) -> click.ClickException:
    """Return what ends a command with status 1, and how to start a cluster of this machine that nobody answers for."""
    text = printable(str(error))
    if isinstance(error, Unreachable) and not error.may_be_done and (command := start_command(given, endpoint.url)):
        text += f"\nIf the cluster does not run, start it with: {printable(command)}"
    return click.ClickException(text)


def check_answer(endpoint: Endpoint, answer: Any, keys: Iterable[str]) -> Any:
    """Return ``answer`` when it is an object that has all ``keys``, or when there are none. Raises ``BadAnswer``."""
    wanted = set(keys)
    if wanted and not (isinstance(answer, dict) and answer.keys() >= wanted):
        raise BadAnswer(f"{endpoint.url} did not answer as a Holdfast node does; is the URL right?")
    return answer


def say_wait(error: ClientError, seconds: float) -> None:
    """Tell on standard error that a call is repeated."""
    click.echo(f"{printable(str(error))}; again in {seconds:.1f} s", err=True)
