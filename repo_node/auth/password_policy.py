"""What a new password must be like. Pure."""

from __future__ import annotations

from repo_node.auth.passwords import PASSWORD_BYTES_MAX


def fault_of(password: str, user: str, *, characters_min: int, kinds_min: int) -> str | None:
    """Return what is wrong with a new password of ``user``, or None."""
    if len(password.encode("utf-8", "surrogateescape")) > PASSWORD_BYTES_MAX or "\0" in password:
        return f"A password has at most {PASSWORD_BYTES_MAX} bytes, and no NUL."
    if len(password) < characters_min:
        return f"A password has at least {characters_min} characters."
    if kinds_of(password) < kinds_min:
        return f"A password needs {kinds_min} of: small letters, capital letters, digits, others."
    if password.casefold() == user.casefold():
        return "A password is not the user's name."
    return None


def kinds_of(password: str) -> int:
    """Return how many of the kinds small letter, capital letter, digit and other a password has."""
    tests = (str.islower, str.isupper, str.isdigit, lambda one: not one.isalnum())
    return sum(any(test(one) for one in password) for test in tests)
