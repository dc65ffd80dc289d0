"""The page of a user's devices: the user sessions of one subject, and beneath each its sudo sessions."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from markupsafe import Markup

from ..handlers import Session, SessionInfo
from .agents import agent_name
from .parts import MINUTE, NODE, Frame, button, clock, csrf_field, facts, page, running

__all__ = ["Device", "devices"]

_PAGE: Final = Markup("""\
<section class="intro"><h1>Your devices</h1>
{intro}
</section>
<section aria-labelledby="devices"><h2 id="devices">{count}</h2>
<ol class="tree devices">{items}</ol>
{below}</section>
""")
_IN_A_STORE: Final = Markup("""\
<p>Each browser that is logged in as <b>{name}</b> has a user session of its own and, while it is confirmed, a sudo
session beneath it. End one, and its next request is refused.</p>""")
_IN_COOKIES: Final = Markup("""\
<p>Browsers keep these sessions, each in a sealed cookie of its own, so no server can list them, nor end one that
another browser keeps: this device is all that can be seen from here. Started with a store, such as
<code>--store sqlite:///demo.db</code>, the demo shows all of them.</p>""")
_BELOW: Final = Markup("""\
<div class="stack">{others}<p class="quiet">A device that is left alone for half an hour is logged out. There are no
passwords in this demo, so whoever gives your name is listed here too. What a browser is called is what it says it
is.</p></div>
""")
_END: Final = Markup("""\
<form method="post" action="/devices/end">
{csrf}
<input type="hidden" name="handle" value="{handle}">
<button class="small" aria-label="End {which}">End</button></form>""")
_ON: Final = Markup('<span class="badge on">{}</span>')


@dataclass(frozen=True, slots=True)
class Device:
    """One user session, the sudo sessions beneath it, and whether it is the one of this request."""

    user: SessionInfo
    sudos: Sequence[SessionInfo] = ()
    here: bool = False

    @classmethod
    def alone(cls, user: Session, sudo: Session) -> "Device":
        """Return the device of this request, as far as its own sessions tell."""
        return cls(user.info(), [sudo.info()] if sudo.is_live() else [], here=True)

    @classmethod
    def listed(cls, user: Session, users: Sequence[SessionInfo], sudos: Sequence[SessionInfo]) -> "list[Device]":
        """Return the device of this request, as its own session has it, and then the others in their order."""
        here = user.handle
        infos = [user.info(), *(info for info in users if info.handle != here)]
        return [
            cls(info, [sudo for sudo in sudos if sudo.parent == info.handle], here=info.handle == here)
            for info in infos
        ]


def devices(frame: Frame, shown: Sequence[Device], now: datetime) -> Markup:
    """Return the page: each device, a button to end it unless it is this one, and one to end all others."""
    others = button(frame, "/devices/end-others", "End all others") if len(shown) > 1 else ""
    content = _PAGE.format(
        intro=_IN_A_STORE.format(name=frame.name) if frame.stored else _IN_COOKIES,
        count="1 device" if len(shown) == 1 else f"{len(shown)} devices",
        items=Markup("").join(_item(frame, device, now) for device in shown),
        below=_BELOW.format(others=others) if frame.stored else "",
    )
    return page(frame, "Your devices", content)


def _item(frame: Frame, device: Device, now: datetime) -> Markup:
    user = device.user
    name, address = agent_name(user.metadata.user_agent), user.metadata.ip_address or "unknown"
    rows = [
        ("Address", Markup("{}").format(address)),
        ("Began", _time(user.created, _text(user.created))),
        ("Last seen", _time(user.seen, "now" if device.here else _ago(now - user.seen))),
        ("Ends in", _left(user, now)),
    ]
    # Browsers of one name differ by their address, or by when they logged in.
    which = f"{name}, address {address}, since {_text(user.created)}"
    end = _END.format(csrf=csrf_field(frame), handle=user.handle, which=which)
    items = Markup("").join(_sudo(sudo, now) for sudo in device.sudos)
    return NODE.format(
        state="alive",
        name=name,
        badges=_ON.format("this device") if device.here else "",
        actions=button(frame, "/logout", "Log out", "small") if device.here else end,
        body=facts(rows),
        children=Markup('<ol class="tree">{}</ol>').format(items) if items else "",
    )


def _sudo(info: SessionInfo, now: datetime) -> Markup:
    rows = [("Began", _time(info.created, _text(info.created))), ("Ends in", _left(info, now))]
    return NODE.format(state="alive", name="sudo", badges=_ON.format("live"), actions="", body=facts(rows), children="")


# -- time ------------------------------------------------------------------------------------


def _time(moment: datetime, text: str) -> Markup:
    return Markup('<time datetime="{}">{}</time>').format(f"{moment:%Y-%m-%dT%H:%M:%SZ}", text)


def _text(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _ago(span: timedelta) -> str:
    """Return how long ago it was, in whole minutes; looks are noted once a minute at most, so the last may be later."""
    minutes = int(span.total_seconds() // MINUTE)
    return "just now" if minutes < 2 else f"{minutes} min ago"  # noqa: PLR2004 - one minute, and the one it may lack


def _left(info: SessionInfo, now: datetime) -> Markup:
    if info.expires_at is None:
        return Markup("no deadline")
    left = max((info.expires_at - now).total_seconds(), 0)
    return running(left, left, clock(left), "inline")
