"""The network that a session runs: the bundle's own, or the mean of those that the user named."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from medvol.bundle import Bundle, load
from medvol.core.errors import ConfigError, MissingInputError
from medvol.core.files import sha256_file
from medvol.inferers import members_of
from medvol.networks import Ensemble, apply_weights, load_weights


def named_members(
    bundle: Bundle, places: Sequence[str], activation: str, device: torch.device
) -> torch.nn.Module:
    """The ensemble of checkpoints and bundles that take the place of the bundle's own weights.

    Args:
        bundle: Gives image preparation, window, labels and, for checkpoints, the architecture.
        places: Checkpoints of the bundle's network (or of one member, where the bundle is an
            ensemble itself), and bundles with the same image preparation and labels.
        activation: Of the probabilities that are averaged.
        device: Where they run.

    Raises:
        MissingInputError: If a place is neither.
        ConfigError: If a bundle prepares its images otherwise or has other labels.
        WeightsError: If a checkpoint does not fit.
    """
    bare = bundle.parser("inference").get_parsed_content("network_def")
    found = [_member(bundle, place, bare, device) for place in places]
    return found[0] if len(found) == 1 else Ensemble(found, activation).to(device)


def member_identities(places: Sequence[str]) -> list[dict[str, str]]:
    """Name and digest of each member, without folders, which may tell of persons."""
    rows = []
    for place, weights in zip(places, member_weights(places), strict=True):
        name = weights.name if Path(place).is_file() else weights.parents[1].name
        rows.append({"name": name, "weights_sha256": sha256_file(weights)})
    return rows


def member_weights(places: Sequence[str]) -> list[Path]:
    """The weights file of each member."""
    return [Path(place) if Path(place).is_file() else load(place).weights for place in places]


def joint_digest(members: Sequence[dict[str, str]]) -> str:
    """One digest for all members, whatever their order."""
    digests = sorted(member["weights_sha256"] for member in members)
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _member(
    bundle: Bundle, place: str, bare: torch.nn.Module, device: torch.device
) -> torch.nn.Module:
    if Path(place).is_file():
        state = load_weights(place)
        is_whole = any(name.startswith("networks.") for name in state)
        one = bare if is_whole else members_of(bare)[0]
        network = copy.deepcopy(one)
        apply_weights(network, state)
        return network.to(device).eval()
    try:
        other = load(place, is_trusted=bundle.is_trusted)
    except MissingInputError as error:
        raise MissingInputError(f"{place}: is neither a checkpoint nor a bundle") from error
    _require_same_way(bundle, other)
    return other.network(device)


def _require_same_way(bundle: Bundle, other: Bundle) -> None:
    ours, theirs = bundle.config("inference"), other.config("inference")
    for key in ("labels", "preprocessing"):
        if _plain(ours.get(key)) != _plain(theirs.get(key)):
            raise ConfigError(
                f"{other.name}: its {key} differs from that of {bundle.name}; members of an "
                "ensemble must see the same image and name the same structures"
            )


def _plain(value: Any) -> Any:
    """The value without the range of legal sizes, which follows each bundle's own window."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if k != "min_size"}
    return [_plain(v) for v in value] if isinstance(value, list) else value
