"""How an artifact gets to its place: built in a folder of its run, published by a rename, nothing of the user's lost.

Only files that an artifact's own manifest lists, and the folders of truecast's own runs, are ever removed.
"""

from truecast.publishing.owned import remove_artifact, require_apart, require_free
from truecast.publishing.publish import published
from truecast.publishing.space import require_space

__all__ = ["published", "remove_artifact", "require_apart", "require_free", "require_space"]
