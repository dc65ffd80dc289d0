"""A ready handler for what has to outlast a visit to another site: a login at an identity provider.

SAML, and OpenID Connect with ``response_mode=form_post``, come back as a POST from the provider's page. Browsers send
no ``SameSite=Lax`` cookie with that, so the session that began the login is not there. A small session of its own, in
a ``SameSite=None`` cookie that lasts minutes, holds what the return is checked against and, once it has been checked,
who it was. The return then redirects to a page of the site, with which every cookie comes again, and there the session
that stays takes it over with ``merge()``.
"""

from dataclasses import fields, replace
from typing import Final

from ..clock import Duration, milliseconds
from ..errors import ConfigError
from .handler import Handler
from .options import Option

__all__ = ["cross_site"]

LIFETIME: Final = 600
"""How many seconds a login elsewhere may take."""


def cross_site(handler: Handler, lifetime: Duration = LIFETIME) -> Handler:
    """Return a root handler named ``<name>-return``, whose cookie also comes with a POST from another site's page.

    It has the keys, the store, the encryption and all else of the handler but its lives, its eagerness and its limit,
    and its sessions end ``lifetime`` seconds after they began. Link it beside the handler. Raises ConfigError for a
    handler without a cookie, or with one that is not Secure.
    """
    config = handler.config
    if config.server_only or config.header is not None:
        raise ConfigError(f"cross_site() is about cookies, and {handler.path!r} has none: use a handler that has one.")
    absolute = milliseconds(lifetime)
    if absolute <= 0:
        raise ConfigError("cross_site() takes a lifetime of more than 0 seconds.")
    name = f"{config.name}-return"
    cookie = None if config.policy.name is None else f"{config.policy.name}-return"
    settings = replace(
        config,
        name=name,
        policy=replace(config.policy, name=cookie, same_site="None"),
        absolute=absolute,
        max_age=0,
        idle=0,
        eager=False,
        limit=None,
    )
    changes = tuple((setting.name, getattr(settings, setting.name)) for setting in fields(settings))
    return Handler(name, config.keys, Option(changes))
