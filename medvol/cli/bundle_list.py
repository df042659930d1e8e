"""`medvol bundle list`: what ships."""

from __future__ import annotations

import json

from medvol.cli._options import Json

EXAMPLE = "medvol bundle list --json"


def run(is_json: Json = False) -> None:
    """List the shipped bundles: task, labels, and whether weights come with them."""
    from medvol.bundle.load import list_bundles
    from medvol.bundle.verify import bundle_report

    rows = [bundle_report(bundle) for bundle in list_bundles()]
    if is_json:
        print(json.dumps(rows))
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        weights = "weights" if row["weights"] else "recipe "
        print(f"{row['name']:{width}}  {row['version']}  {weights}  {', '.join(row['labels'])}")
