"""`make bench`: every benchmark of this folder, one table each."""

from __future__ import annotations

import importlib
import pkgutil

import tests.bench


def main() -> None:
    for found in pkgutil.iter_modules(tests.bench.__path__):
        if found.name.startswith("bench_"):
            module = importlib.import_module(f"tests.bench.{found.name}")
            print(f"\n== {found.name.removeprefix('bench_')}: {(module.__doc__ or '').splitlines()[0]}")
            module.main()


if __name__ == "__main__":
    main()
