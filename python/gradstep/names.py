"""Check a name against the valid ones and say which was probably meant."""

from __future__ import annotations

from collections.abc import Iterable


def check_name(kind: str, name: object, valid: Iterable[str]) -> str:
    """Return the name if it is valid.

    Parameters
    ----------
    kind
        What the name stands for, as the error says it: "activation", "loss", ...
    name
        The name given.
    valid
        All valid names.

    Returns
    -------
    str
        The name.

    Raises
    ------
    TypeError
        If the name is not a string.
    ValueError
        If it is not one of the valid names; the message names the nearest one.
    """
    choices = tuple(valid)
    if not isinstance(name, str):
        raise TypeError(f"{kind} must be a name ({_listed(choices)}), got {name!r}")
    if name not in choices:
        raise ValueError(f"unknown {kind} {name!r}{_hint(name, choices)}; valid names: {_listed(choices)}")
    return name


def _hint(name: str, choices: tuple[str, ...]) -> str:
    import difflib  # not at every start of a program

    spelling = name.lower().replace("-", "_").replace(" ", "_")
    spellings = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(spelling, spellings, n=1, cutoff=0.5)
    return f", did you mean {spellings[near[0]]!r}?" if near else ""


def _listed(choices: tuple[str, ...]) -> str:
    return ", ".join(choices)
