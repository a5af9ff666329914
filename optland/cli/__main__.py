"""``python -m optland.cli`` is ``optland``."""

from __future__ import annotations

from optland.cli.commands import main

if __name__ == "__main__":
    raise SystemExit(main())
