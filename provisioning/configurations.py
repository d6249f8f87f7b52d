"""Settings for devices: documents of product, cohort and device, merged in that order (RFC 7396).

Decides what the merged document says. Which documents there are, and how the result reaches a device, is not built yet.
"""

from collections.abc import Mapping, Sequence
from typing import cast


def merge(target: object, patch: object) -> object:
    """Apply a JSON merge patch (RFC 7396 §2); neither argument is changed.

    Args:
        target: any JSON value.
        patch: any JSON value; its objects go into those of `target`, null takes a member away, and everything else
            takes the place of what is there.

    Returns:
        The result, which may share parts with both.
    """
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(cast(Mapping[str, object], target)) if isinstance(target, Mapping) else {}
    for name, value in cast(Mapping[str, object], patch).items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged


def merge_documents(documents: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """What several documents say together.

    The first is a patch too, onto nothing: so a null means the same in all of them, and none is left between objects.

    Args:
        documents: objects, the widest first: product, cohort, device.
    """
    merged: object = {}
    for document in documents:
        merged = merge(merged, document)
    return cast(dict[str, object], merged)
