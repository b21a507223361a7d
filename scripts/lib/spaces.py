"""Which rooms an episode was recorded in."""

from __future__ import annotations

import re

# scene0709_00 and scene0709_01 are two scans of one place
_SCANNET = re.compile(r"^\d+-scannet-(scene\d+)_\d+$")
_HM3D = re.compile(r"^\d+-hm3d-([A-Za-z0-9]+)$")
_SCAN = re.compile(r"(scene\d{4}_\d{2})$")


def source_of(episode_history: str) -> str:
    """The data set that an episode belongs to: the first part of its id, such as "hm3d-v0"."""
    return episode_history.split("/", 1)[0]


def space_of(episode_history: str) -> str:
    """The place that an episode shows; two episodes of one space show the same rooms.

    Args:
        episode_history: Open-EQA's id of an episode, such as "scannet-v0/002-scannet-scene0709_00".
    Returns:
        HM3D's scene code ("hm3d-v0/000-hm3d-BFRyYbPCCPE" -> "BFRyYbPCCPE"), ScanNet's scene without the number of the
        scan ("scene0709", also of "scannet-v0/scene0709_00"), and for any other id the id itself: an unknown episode is a space of its own.
    Source:
        The ids of Open-EQA v0: 152 episodes show 137 spaces, because 15 ScanNet places were scanned twice.
    """
    name = episode_history.rsplit("/", 1)[-1]
    for pattern in (_SCANNET, _HM3D):
        if found := pattern.search(name):
            return found.group(1)
    if scan := scan_of(episode_history):
        return scan.rpartition("_")[0]
    return episode_history


def scan_of(episode_history: str) -> str | None:
    """ScanNet's name of the scan ("scene0709_00"), which its raw files carry; None for other episodes."""
    found = _SCAN.search(episode_history)
    return found.group(1) if found and "scannet" in episode_history else None
