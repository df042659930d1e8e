"""Options that several verbs share, worded once."""

from __future__ import annotations

from typing import Annotated

import typer

TrustBundle = Annotated[
    bool, typer.Option("--trust-bundle", help="Run code in a bundle that is not shipped.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
