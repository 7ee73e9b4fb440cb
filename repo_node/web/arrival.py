"""What a request becomes before it is routed: its path canonical, its Expect taken out of aiohttp's hands.

The router, the permissions, the handlers and the log all see one and the same target, so that no
percent-encoding, matrix parameter or trailing slash leads to another route. aiohttp itself would
answer an Expect on a path it does not know with 100, before anybody has asked who the client is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import HttpVersion11, web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from repo_node.errors import RequestError
from repo_node.paths import PLAIN, BadPath, check_query, parse_target
from repo_node.web.context import CONTINUE_DUE, REFUSED, TARGET

RequestFactory = Callable[..., web.BaseRequest]


class AppRequest(web.Request):
    """A request that knows its application, and looks up what it carries by one call.

    aiohttp's own asks the result of its routing each time, and looks up by way of ``Mapping``: by three calls each.
    """

    __slots__ = ("app",)

    ATTRS = web.Request.ATTRS | {"app"}
    app: web.Application

    def get(self, key: Any, default: Any = None) -> Any:
        return self._state.get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in self._state


def on_arrival(make: RequestFactory, app: web.Application) -> RequestFactory:
    """Return ``make``, giving it messages in canonical form; what is wrong with one stands in ``REFUSED``."""

    def arrive(message: Any, *args: Any) -> web.BaseRequest:
        found: dict[Any, Any] = {}
        try:
            found[TARGET] = target = parse_target(message.path)
            path, _, asked = message.path.partition("?")
            check_query(asked)
            if not PLAIN.fullmatch(path):
                query = message.url.raw_query_string
                message = message._replace(url=URL.build(path=target.encoded, query_string=query, encoded=True))
        except BadPath as error:
            found[REFUSED] = error
        if (expected := message.headers.get("Expect")) is not None:
            message = without_expect(message)
            if expected.lower() != "100-continue":
                found.setdefault(REFUSED, RequestError("Only Expect: 100-continue is supported.", status=417))
            found[CONTINUE_DUE] = message.version >= HttpVersion11
        request = make(message, *args, _cls=AppRequest)
        assert isinstance(request, AppRequest)
        request.app = app
        for key, value in found.items():
            request[key] = value
        return request

    return arrive


def without_expect(message: Any) -> Any:
    headers = CIMultiDict(message.headers)
    del headers["Expect"]
    return message._replace(headers=CIMultiDictProxy(headers))
