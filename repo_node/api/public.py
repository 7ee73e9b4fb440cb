"""The public listener's application: every call of every subject."""

from __future__ import annotations

from aiohttp import web

from repo_node.api import (
    aql,
    artifacts,
    audit,
    checks,
    folder_download,
    gc,
    jobs,
    members,
    openapi,
    properties,
    repositories,
    searches,
    settings,
    status,
    storage,
    storage_info,
    support,
    system,
    system_info,
    tasks,
    transfers,
    trash,
)
from repo_node.api.security import accounts, api_keys, groups, own_tokens, permissions, tokens, users
from repo_node.node import Node
from repo_node.web.context import SERVICES, Services
from repo_node.web.middleware import answer, complete_head
from repo_node.web.routes import Routes
from repo_node.web.state import NODE

OF_SYSTEM = (system, openapi, system_info, storage_info, tasks, support)
OF_SECURITY = (accounts, users, groups, permissions, tokens, api_keys)
"""What is done to accounts comes before users, whose names it could be."""

OF_TREES = (storage, properties, transfers, searches, aql, folder_download)
OWN = (status, settings, own_tokens, audit, jobs, members, checks, gc, trash)


def public_app(services: Services, node: Node) -> web.Application:
    """Build the application: every route with the permission it needs, and what clients are told of it."""
    app = web.Application(middlewares=[answer])
    app[SERVICES], app[NODE], app[openapi.API_DOCUMENT] = services, node, openapi.ApiDocument(app)
    app.on_response_prepare.append(complete_head)
    routes = Routes(app)
    for subject in (*OF_SYSTEM, repositories, *OF_SECURITY, *OF_TREES, *OWN, artifacts):
        subject.add_routes(routes)
    return app
