"""Which GPUs the machine code of a library runs on. Owns: the rule, from the list that the library was built for."""

from __future__ import annotations

from pathlib import Path

from qwen3moe_plugins.errors import InputError

# Kernels chosen for this GPU have instructions that only its own target has; PTX of an older one has none of them.
_SPECIFIC = {"90": "90a"}


def check_architectures(path: Path, architectures: str, gpu: str, compute_capability: str) -> None:
    """Raises InputError, naming `path`, if a library built for `architectures` (QWEN3MOE_ARCHS, with commas between)
    has no code for `gpu`, such as sm90."""
    if not runs_on(architectures, compute_capability.removeprefix("sm")):
        wanted = _SPECIFIC.get(compute_capability.removeprefix("sm"), compute_capability.removeprefix("sm"))
        raise InputError(
            str(path),
            got=f"code for {architectures}",
            expected=f"code for {gpu} ({compute_capability})",
            remedy=f"run `make plugins ARCHS={wanted}`",
        )


def runs_on(architectures: str, number: str) -> bool:
    """Machine code runs on its own GPU and on later ones of the same first digits (80 on 86, 120 on 121); that of 90a
    on 90 alone; and PTX, which there is of the last architecture, on all later ones."""
    built = architectures.split(",")
    if number in _SPECIFIC:
        return _SPECIFIC[number] in built
    plain = [int(each) for each in built if each.isdigit()]
    same_family = any(each // 10 == int(number) // 10 and each <= int(number) for each in plain)
    return same_family or (built[-1].isdigit() and int(built[-1]) <= int(number))
