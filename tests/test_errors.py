"""The tree of errors: every name, whose fault it is, and whether a retry can help."""

import pickle
import re

import pytest

import sessiontree
from sessiontree import errors
from sessiontree.errors import ConfigError, KeyNotFound, SessionError

TREE = {
    "SessionError": (Exception,),
    "UsageError": ("SessionError",),
    "ConfigError": ("UsageError", TypeError, ValueError),
    "HeadersSent": ("UsageError",),
    "NotImplementedByStore": ("UsageError",),
    "RejectedError": ("SessionError",),
    "NoCookie": ("RejectedError",),
    "NoID": ("RejectedError",),
    "BadCookie": ("RejectedError",),
    "BadSession": ("RejectedError",),
    "Expired": ("RejectedError",),
    "NoSession": ("RejectedError",),
    "ParentInvalid": ("RejectedError",),
    "KeyNotFound": ("SessionError", KeyError),
    "TooLarge": ("SessionError",),
    "CookieTooLarge": ("TooLarge",),
    "RecordTooLarge": ("TooLarge",),
    "Conflict": ("SessionError",),
    "SessionGone": ("Conflict",),
    "CompareFailed": ("Conflict",),
    "LimitReached": ("Conflict",),
    "StoreError": ("SessionError",),
    "StoreUnavailable": ("StoreError",),
    "StoreCorrupt": ("StoreError",),
}
RETRYABLE = {"CompareFailed", "StoreUnavailable"}

each_error = pytest.mark.parametrize("name", TREE)


def test_the_tree_has_exactly_these_names():
    defined = {name for name, thing in vars(errors).items() if isinstance(thing, type) and issubclass(thing, Exception)}
    assert defined == set(TREE) == set(errors.__all__)
    assert errors.__all__ == sorted(errors.__all__)


@each_error
def test_every_error_has_exactly_its_parents(name):
    parents = tuple(getattr(errors, parent) if isinstance(parent, str) else parent for parent in TREE[name])
    assert getattr(errors, name).__bases__ == parents


@each_error
def test_every_error_says_whether_a_retry_can_help(name):
    assert getattr(errors, name).retryable is (name in RETRYABLE)
    assert getattr(errors, name)("why").retryable is (name in RETRYABLE)


@each_error
def test_the_front_door_offers_every_error(name):
    assert getattr(sessiontree, name) is getattr(errors, name)
    assert name in sessiontree.__all__


@each_error
def test_every_error_says_its_message_plainly(name):
    assert str(getattr(errors, name)("what to change")) == "what to change"


@each_error
def test_every_error_survives_a_copy_to_another_process(name):
    back = pickle.loads(pickle.dumps(getattr(errors, name)("why")))  # noqa: S301 - our own bytes
    assert type(back) is getattr(errors, name)
    assert str(back) == "why"


@each_error
def test_every_error_has_a_docstring_of_its_own(name):
    assert getattr(errors, name).__doc__ != Exception.__doc__
    assert "__doc__" in vars(getattr(errors, name))


def test_the_drawing_shows_the_tree():
    drawn: list[tuple[int, str]] = []
    for line in errors.__doc__.splitlines():
        found = re.match(r"( {4,})([A-Z]\w+)", line)
        if found:
            drawn.append((len(found[1]), found[2]))
    assert [name for _, name in drawn] == list(TREE)
    for place, (indent, name) in enumerate(drawn[1:], start=1):
        above = next(other for depth, other in reversed(drawn[:place]) if depth < indent)
        assert TREE[name][0] == above


def test_key_not_found_is_a_key_error_that_does_not_quote_its_message():
    with pytest.raises(KeyError) as caught:
        raise KeyNotFound("The session has no key 'k'.")
    assert str(caught.value) == "The session has no key 'k'."


@pytest.mark.parametrize("usual", [TypeError, ValueError, SessionError])
def test_a_config_error_is_caught_by_code_that_checks_arguments_in_the_usual_way(usual):
    with pytest.raises(usual, match="wrong"):
        raise ConfigError("wrong")
